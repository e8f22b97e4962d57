"""The record of one evaluation, made from all its results."""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ddpm_cli import __version__
from ddpm_cli.checkpoint.files import fingerprint as fingerprint_of
from ddpm_cli.checkpoint.metadata import MANIFEST_FILE
from ddpm_cli.evaluation.metrics import Measured
from ddpm_cli.evaluation.record import Figure, Record, figure_name, fingerprint
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.evaluation.subject import Subject
from ddpm_cli.io.command_line import command

_LIBRARIES = ("torch", "numpy", "pillow")


def describe(
    setting: Setting,
    subject: Subject,
    measured: Sequence[Measured],
    *,
    remarks: Sequence[str],
    seconds: dict[str, float],
    rate: float | None,
    files: tuple[str, ...],
) -> Record:
    """All figures with names and fingerprints, and everything that they depend on."""
    return Record(
        model=_model(setting, subject),
        samples=None if subject.samples is None else subject.samples.described(),
        features=_features(setting),
        reference=None if setting.reference is None else setting.reference.identity(),
        figures=tuple(_figure(setting, found) for found in _in_order(setting, measured)),
        seconds={what: round(spent, 3) for what, spent in seconds.items()},
        images_per_second=None if rate is None else round(rate, 3),
        command=command("ddpm-eval", *sys.argv[1:]),
        versions={"ddpm_cli": __version__} | {name: _version(name) for name in _LIBRARIES},
        remarks=tuple(remarks),
        details=details_of(measured),
        files=files,
    )


def details_of(measured: Sequence[Measured]) -> dict[str, Any]:
    """The additional results of each metric, by its name; those of a single class are not kept."""
    return {found.metric: found.detail for found in measured if found.detail is not None and found.of_class is None}


def _in_order(setting: Setting, measured: Sequence[Measured]) -> list[Measured]:
    """In the order of the request, with those of classes last."""
    asked = {"precision": "precision_recall", "recall": "precision_recall"}
    place = {name: i for i, name in enumerate(setting.options.metrics)}
    return sorted(measured, key=lambda f: (f.of_class is not None, place[asked.get(f.metric, f.metric)]))


def _figure(setting: Setting, found: Measured) -> Figure:
    features = setting.extractor if found.of_features else None
    reference = found.compared
    if features is not None:
        assert setting.reference is not None
        # What it is called decides nothing.
        reference = {key: value for key, value in setting.reference.identity().items() if key != "name"}
    return Figure(
        name=figure_name(found.metric, features=None if features is None else features.name, n=found.n),
        metric=found.metric,
        value=found.value,
        standard_error=found.standard_error,
        n=found.n,
        fingerprint=fingerprint(
            found.metric,
            settings=found.settings,
            features=None if features is None else features.identity(),
            reference=reference,
            n=found.n,
            of_class=found.of_class,
        ),
        of_class=found.of_class,
    )


def _model(setting: Setting, subject: Subject) -> dict[str, Any] | None:
    selection = subject.selection
    if selection is None or subject.pretrained is None:
        return None
    found = selection.checkpoint
    return {
        "run": None if setting.run is None else str(setting.run.absolute()),
        "checkpoint": found.path.name,
        "step": subject.pretrained.step,
        "sha256": fingerprint_of(found.path / MANIFEST_FILE if found.path.is_dir() else found.path),
        "weights": setting.options.weights,
        "ema_length": setting.options.ema_length,
    }


def _features(setting: Setting) -> dict[str, Any] | None:
    if setting.extractor is None:
        return None
    return {"name": setting.extractor.name, "identity": setting.extractor.identity()}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
