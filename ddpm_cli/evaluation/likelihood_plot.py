"""A plot of the variational bound: the bits of each timestep, on a logarithmic scale."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm_cli.evaluation.likelihood import Bpd
from ddpm_cli.io.images import save_png

_WIDTH, _HEIGHT = 960, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 32, 84, 64  # margins
_FINER = 3  # drawn so many times as large, and scaled down: lines without steps
_MOST_DECADES = 8  # below the largest term
_PAPER, _INK, _FAINT, _LINE, _BELOW = "#ffffff", "#26323f", "#e3e8ee", "#2166ac", "#dbe8f4"


def save_bound_plot(figures: Bpd, path: Path) -> None:
    """Write `bound_plot` as a PNG."""
    save_png(bound_plot(figures), path)


def bound_plot(figures: Bpd) -> Tensor:
    """L_t over t with the decoder's term at 0, on a logarithmic scale, uint8 `[3, H, W]`."""
    size = _WIDTH * _FINER, _HEIGHT * _FINER
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    low, high = _decades(figures.terms)
    _draw_axes(draw, len(figures.terms), low, high)
    _draw_terms(draw, figures.terms, low, high)
    error = "" if math.isnan(figures.standard_error) else f" ± {figures.standard_error:.4f}"
    _text(draw, (_LEFT, 22), f"{figures.total:.4f}{error} bits per dimension", size=22, anchor="la")
    parts = f"decoder (t = 0) {figures.decoder:.4f}, prior {figures.prior:.2g}, {figures.images:,} images"
    _text(draw, (_LEFT, 52), f"L_t of the variational bound; {parts}", size=14, anchor="la")
    image = image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _decades(terms: tuple[float, ...]) -> tuple[int, int]:
    """The powers of ten at the ends of the scale."""
    positive = [term for term in terms if term > 0 and math.isfinite(term)]
    high = math.ceil(math.log10(max(positive, default=1.0)))
    low = math.floor(math.log10(min(positive, default=0.1)))
    return min(max(low, high - _MOST_DECADES), high - 1), high


def _draw_axes(draw: ImageDraw.ImageDraw, timesteps: int, low: int, high: int) -> None:
    for decade in range(low, high + 1):
        y = _y(10.0**decade, low, high)
        _line(draw, [(_LEFT, y), (_WIDTH - _RIGHT, y)], _FAINT, 1)
        _text(draw, (_LEFT - 10, y), f"1e{decade}" if abs(decade) > 3 else f"{10.0**decade:g}", size=13, anchor="rm")
    for t in _ticks(timesteps):
        x = _x(t, timesteps)
        _line(draw, [(x, _HEIGHT - _BOTTOM), (x, _HEIGHT - _BOTTOM + 6)], _INK, 1)
        _text(draw, (x, _HEIGHT - _BOTTOM + 12), f"{t:,}", size=13, anchor="ma")
    _line(draw, [(_LEFT, _HEIGHT - _BOTTOM), (_WIDTH - _RIGHT, _HEIGHT - _BOTTOM)], _INK, 1)
    _text(draw, (_WIDTH - _RIGHT, _HEIGHT - 22), "t", size=14, anchor="rm")


def _draw_terms(draw: ImageDraw.ImageDraw, terms: tuple[float, ...], low: int, high: int) -> None:
    points = [(_x(t, len(terms)), _y(term, low, high)) for t, term in enumerate(terms)]
    floor = _HEIGHT - _BOTTOM
    below = [(points[0][0], floor), *points, (points[-1][0], floor)]
    if len(points) > 1:
        draw.polygon([(x * _FINER, y * _FINER) for x, y in below], fill=_BELOW)
    for decade in range(low, high + 1):  # again, over the filled part
        y = _y(10.0**decade, low, high)
        _line(draw, [(_LEFT, y), (_WIDTH - _RIGHT, y)], _FAINT, 1)
    _line(draw, points, _LINE, 2)
    x, y = points[0]
    draw.ellipse([((x - 4) * _FINER, (y - 4) * _FINER), ((x + 4) * _FINER, (y + 4) * _FINER)], fill=_LINE)


def _ticks(timesteps: int) -> list[int]:
    """Round numbers, about ten of them."""
    rough = max(1.0, (timesteps - 1) / 10)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return list(range(0, timesteps, step))


def _x(t: int, timesteps: int) -> float:
    return _LEFT + t / max(1, timesteps - 1) * (_WIDTH - _LEFT - _RIGHT)


def _y(term: float, low: int, high: int) -> float:
    """The place of a term: at the bottom if it is not positive, or too small to be shown."""
    exponent = math.log10(term) if term > 0 and math.isfinite(term) else low
    share = min(1.0, max(0.0, (exponent - low) / (high - low)))
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: str, width: int) -> None:
    draw.line([(x * _FINER, y * _FINER) for x, y in points], fill=colour, width=width * _FINER, joint="curve")


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *, size: int, anchor: str) -> None:
    font = ImageFont.load_default(size * _FINER)
    draw.text((at[0] * _FINER, at[1] * _FINER), text, fill=_INK, font=font, anchor=anchor)
