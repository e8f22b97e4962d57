"""Figures as tables, and those in their places in docs/explanation/performance.md."""

from collections.abc import Collection, Iterator
from pathlib import Path

import tables_in_docs

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "performance.md"
# What belongs to no configuration: the group of entries, and what the command has beside the device.
OF_MACHINE = {"once": "", "evaluation": " --only evaluation --only frechet", "small": " --only small"}
HEADER = ["| what | who | median (lowest to highest) | ours / this one | details |", "| --- | --- | --- | --- | --- |"]


def lines(figures: dict, config: str) -> list[str]:
    """The Markdown of one configuration, with what the machine is."""
    found = figures["configs"][config]
    return [
        *_heading(figures, f"batch {found['batch_size']}, {found['precision']}"),
        *HEADER,
        *(_line(entry, figures, found) for entry in found["entries"]),
    ]


def machine_lines(figures: dict, group: str) -> list[str]:
    """The Markdown of a group of OF_MACHINE."""
    return [
        *_heading(figures, figures["precision"]),
        *HEADER,
        *(_line(entry, figures, {}) for entry in figures[group]),
    ]


def _heading(figures: dict, how: str) -> list[str]:
    machine = figures["machine"]
    versions = ", ".join(f"{package} {version or 'not installed'}" for package, version in machine["versions"].items())
    left_out = [f"Left out: {'; '.join(figures['left_out'])}.", ""] if figures["left_out"] else []
    return [f"`{figures['command']}` on {machine['device']}; {how}; {versions}.", "", *left_out]


def _line(entry: dict, figures: dict, found: dict) -> str:
    return (
        f"| {entry['row']} | {entry['who']} | {_figure(entry)} | {_ratio(entry)} | {_beside(entry, figures, found)} |"
    )


def _figure(entry: dict) -> str:
    if "failure" in entry:
        return "failed: " + entry["failure"].replace("|", "/")
    if "parameters" in entry:
        return f"{entry['parameters']:,} parameters"
    scale, unit = (1e9, "GFLOP/s") if entry["unit"] == "FLOP/s" else (1, entry["unit"])
    median, low, high = (_short(entry[key] / scale) for key in ("median", "low", "high"))
    return f"{median} {unit} ({low} to {high})"


def _ratio(entry: dict) -> str:
    if "ratio" not in entry:
        return ""
    ratio = entry["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _beside(entry: dict, figures: dict, found: dict) -> str:
    said = []
    if "forward_flops" in entry:
        said.append(
            f"{entry['forward_flops'] / 1e9:.3g} GFLOP per image, {entry['training_flops'] / 1e9:.3g} in training"
        )
    if "share_of_alone" in entry:
        said.append(f"{entry['share_of_alone']:.0%} of its speed alone")
    if "peak_bytes" in entry:
        said.append(f"{entry['peak_bytes'] / 2**20:,.0f} MiB at peak")
    if "drawn" in entry:
        drawn = entry["drawn"]
        said.append(
            f"{drawn['images']:,} images in {drawn['calls']} calls each, {_short(drawn['per_second'])} images/s"
        )
    if entry["row"] == "training" and entry.get("first_seconds") is not None:
        said.append(f"{_short(entry['first_seconds'])} s to build it and train the first step")
    achieved = _achieved(entry, found)
    if achieved is not None:
        said.append(f"{_short(achieved / 1e9)} GFLOP/s")
        said += [f"{achieved / best['high']:.0%} of the {best['who']}" for best in _rates(figures)]
    return ", ".join(said)


def _rates(figures: dict) -> Iterator[dict]:
    return (entry for entry in figures["once"] if entry["row"] == "arithmetic" and "median" in entry)


def _achieved(entry: dict, found: dict) -> float | None:
    """FLOP/s of a network that trains, or is only asked."""
    of_image = {"training": "training_flops", "forward": "forward_flops"}.get(entry["row"])
    if of_image is None or "median" not in entry:
        return None
    name = entry["who"].partition(",")[0]
    sizes = [other for other in found.get("entries", []) if other["row"] == "network" and other["who"] == name]
    return entry["median"] * sizes[0][of_image] if sizes else None


def _short(number: float) -> str:
    """Three digits that count."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def with_entries(figures: dict) -> list[str]:
    """The groups of which all tables have something to say."""
    said = {group: [figures.get(group, [])] for group in OF_MACHINE}
    said["configs"] = [found["entries"] for found in figures["configs"].values()]
    return [group for group, tables in said.items() if all(tables)]


def keep(figures: dict, groups: Collection[str]) -> None:
    """Put the tables of these groups in their places, between two comments of docs/explanation/performance.md."""
    device = figures["device"]
    tables = {}
    if "configs" in groups:
        tables = {f"--device {device} --config {name}": lines(figures, name) for name in figures["configs"]}
    for group, options in OF_MACHINE.items():
        if group in groups:
            tables[f"--device {device}{options}"] = machine_lines(figures, group)
    for call, table in tables.items():
        tables_in_docs.write(DOCUMENT, f"scripts/bench {call}", call, table)
