"""The model card, README.md beside an exported model: what it is, the code to sample from it, where it comes from."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ddpm_cli.conversion.card_code import Drawing, drawing_code
from ddpm_cli.conversion.origin import Figure, Origin
from ddpm_cli.io.text import printable, size_text

CARD_FILE = "README.md"
NAMES_SHOWN = 1000  # of labels


class Model(NamedTuple):
    """The description of the model itself.

    Args:
        name: what it is called, the title.
        unet, scheduler: their configurations, as diffusers reads them.
        schedule: of the noise, what it is called here.
        parameters: how many numbers it has learned.
        drawing: what the code that draws from it has to know.
    """

    name: str
    unet: dict[str, Any]
    scheduler: dict[str, Any]
    schedule: str
    parameters: int
    drawing: Drawing


def model_card(model: Model, origin: Origin) -> str:
    """The text, in Markdown."""
    parts = (
        _head(model.drawing),
        [f"# {_text(model.name)}", "", *_what(model, origin)],
        ["## Draw", "", *drawing_code(model.drawing)],
        ["## How it was made", "", *_commands(origin)],
        _figures(origin),
        [
            "## Licence",
            "",
            "None is given here. Whoever publishes this model must choose one that its training images allow, "
            "and add `license:` to the head of this file.",
        ],
    )
    return "\n\n".join("\n".join(part).rstrip() for part in map(list, parts) if part) + "\n"


def _head(drawing: Drawing) -> Iterator[str]:
    """The header that a hub reads; its keys are the hub's."""
    yield from ("---", "library_name: diffusers")
    if drawing.labels is None:
        yield "pipeline_tag: unconditional-image-generation"
    yield from ("tags:", "- ddpm", "---")


def _what(model: Model, origin: Origin) -> Iterator[str]:
    drawing, scheduler = model.drawing, model.scheduler
    done = "read by `ddpm-import`" if origin.imported else "trained with ddpm-cli"
    yield f"A denoising diffusion model, {done} and written by `ddpm-export` in the format of diffusers."
    betas = model.schedule if "beta_schedule" in scheduler else f"{model.schedule}, as `trained_betas`"
    rows = {
        "images": f"{size_text((drawing.channels, drawing.height, drawing.width))}, in [-1, 1]",
        "network": f"`{model.unet['_class_name']}`, {model.parameters:,} parameters, in float32",
        "weights": origin.weights if origin.imported else f"after {origin.step:,} steps, {origin.weights}",
        "trained on": origin.data,
        "noise": f"{drawing.timesteps:,} steps, {betas}{', down to pure noise' if drawing.ends_in_noise else ''}",
        "the network predicts": f"`{scheduler['prediction_type']}`",
        "variance of the steps": f"`{scheduler['variance_type']}`",
        "labels": _labels(drawing, origin.classes),
    }
    yield from ("", "| | |", "| --- | --- |")
    for name, value in rows.items():
        yield f"| {name} | {_text(value)} |"


def _labels(drawing: Drawing, names: tuple[str, ...]) -> str:
    if drawing.labels is None:
        return "none"
    known = [f"{number}: {name}" for number, name in enumerate(names[:NAMES_SHOWN])]
    more = ["..."] if len(names) > NAMES_SHOWN else []
    named = any(name != str(number) for number, name in enumerate(names))
    said = ", ".join([*known, *more]) if named else f"0 to {drawing.labels - 1}"
    if drawing.no_label is None:
        return said
    return f"{said}; {drawing.no_label}: no label{'' if drawing.guided else ', which it was not trained with'}"


def _commands(origin: Origin) -> Iterator[str]:
    if origin.trained_by is not None:
        yield f"    {printable(origin.trained_by)}"
    yield f"    {printable(origin.exported_by)}"
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    if versions:
        yield from ("", f"{'Imported' if origin.imported else 'Trained'} with {_text(versions)}.")


def _figures(origin: Origin) -> list[str]:
    if not origin.figures:
        return []
    table = ["## Figures", "", "| figure | value | of |", "| --- | --- | --- |"]
    return table + [f"| {_text(figure.name)} | {_value(figure)} | {_text(figure.how)} |" for figure in origin.figures]


def _value(figure: Figure) -> str:
    error = "" if figure.standard_error is None else f" +- {figure.standard_error:.2g}"
    return f"{figure.value:.4g}{error}"


def _text(text: str) -> str:
    """A text that may be anybody's, in a cell of a table."""
    return printable(text).replace("|", "\\|").replace("<", "&lt;")
