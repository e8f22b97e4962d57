"""A chart as SVG whose colours a style sheet decides: `c0`, `c1`... are curves of runs that have a colour."""

import math
from collections.abc import Sequence
from html import escape

from ddpm_cli.comparison.curves import Chart, Curve

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 10, 38
MOST_MARKED = 30  # points of a curve: more would lie upon each other
STROKES = ("solid", "dashed", "dotted", "mixed")  # of a run's several curves; the last one also of all further ones
LOG_FROM = 20.0  # largest over smallest value: from there on a linear axis shows nothing of the small ones


def svg(chart: Chart, names: Sequence[str], colours: dict[int, str]) -> str:
    """The drawing of a chart.

    Args:
        names: of the runs.
        colours: of a run, the class that gives its curves a colour.
    """
    xs = [x for curve in chart.curves for x, _ in curve.points]
    ys = [y for curve in chart.curves for _, y in curve.points]
    across = _Axis(xs, LEFT, WIDTH - RIGHT, log=chart.log_across and min(xs) > 0, whole=True)
    up = _Axis(ys, HEIGHT - BOTTOM, TOP, log=min(ys) > 0 and max(ys) / min(ys) > LOG_FROM)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *(_line_across(up, value) for value in up.ticks),
        *(_mark(across, value) for value in across.ticks),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">{escape(chart.across)}</text>',
    ]
    # Grey ones first: the others are drawn over them.
    for curve in sorted(chart.curves, key=lambda curve: curve.run in colours):
        named = f"{names[curve.run]}{f', {curve.label}' if curve.label else ''}"
        classes = f"curve {colours.get(curve.run, 'rest')} {stroke(chart, curve)}"
        parts.append(f'<g class="{classes}" data-run="{curve.run}">{_drawn(chart, curve, named, across, up)}</g>')
    return "".join([*parts, "</svg>"])


def stroke(chart: Chart, curve: Curve) -> str:
    """How the line of a curve is drawn, by its label."""
    return STROKES[min(chart.labels.index(curve.label), len(STROKES) - 1)]


def _drawn(chart: Chart, curve: Curve, named: str, across: "_Axis", up: "_Axis") -> str:
    places = [(across.place(x), up.place(y)) for x, y in curve.points]
    said = [f"{named}: {number_text(y)} at {chart.across} {number_text(x)}" for x, y in curve.points]
    parts = [f"<title>{escape(said[-1])}</title>"]
    if len(places) > 1:
        parts.append(f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
    if (chart.points and len(places) <= MOST_MARKED) or len(places) == 1:
        for (x, y), text in zip(places, said, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(text)}</title></circle>')
    return "".join(parts)


def _line_across(up: "_Axis", value: float) -> str:
    y = up.place(value)
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="up" x="{LEFT - 6}" y="{y + 4:.1f}">{number_text(value)}</text>'


def _mark(across: "_Axis", value: float) -> str:
    return f'<text class="across" x="{across.place(value):.1f}" y="{HEIGHT - BOTTOM + 16}">{number_text(value)}</text>'


def number_text(value: float) -> str:
    """A number, as short as is unambiguous."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


class _Axis:
    """Maps values to places between two ends of a drawing."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool, whole: bool = False):
        self.log, self.start, self.end = log, start, end
        low, high = (math.log10(value) if log else value for value in (min(values), max(values)))
        margin = 0.04 * (high - low)
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            margin = 0.5 if log else abs(high) / 2 or 1.0
        self.low, self.high = low - margin, high + margin
        self.ticks = self._logarithmic() if log else self._linear(whole)

    def place(self, value: float) -> float:
        part = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def _linear(self, whole: bool) -> list[float]:
        size = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(size))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= size)
        step = max(step, 1.0) if whole else step
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step) + 1)][:12]

    def _logarithmic(self) -> list[float]:
        for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            ticks = [10.0**power * factor for power in powers for factor in factors]
            found = [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]
            if len(found) >= 4:
                break
        every = -(-len(found) // 8)
        return found[::every]
