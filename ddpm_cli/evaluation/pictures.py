"""What is written beside a record: the samples, a sheet of those nearest to training images, the terms of a bound."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm_cli.evaluation.feature_store import FeatureStore
from ddpm_cli.evaluation.features.extractor import opaque
from ddpm_cli.evaluation.likelihood import Bpd
from ddpm_cli.evaluation.likelihood_plot import save_bound_plot
from ddpm_cli.evaluation.metrics import Measured
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.io.images import grid, save_png

PAIRS_IN_A_ROW = 10


def write_files(setting: Setting, record: Path, measured: Sequence[Measured], store: FeatureStore | None) -> list[str]:
    """Write what these figures come with; returns the names of the files.

    Raises:
        OSError: if one cannot be written.
    """
    written = []
    for figure in measured:
        if figure.metric == "memorization" and figure.detail is not None and store is not None:
            path = record.with_name(f"{record.stem}_nearest.png")
            pairs = [(pair["sample"], pair["training"]) for pair in figure.detail["nearest"]]
            assert setting.reference is not None
            nearest = setting.reference.images([training for _, training in pairs])
            save_png(pair_sheet(store.images([sample for sample, _ in pairs]), nearest), path)
            written.append(path.name)
        if figure.metric == "bpd" and figure.detail is not None:
            path = record.with_name(f"{record.stem}_bpd.png")
            save_bound_plot(_bound(figure, figure.detail), path)
            written.append(path.name)
    if setting.options.keep and store is not None:
        path = record.with_suffix(".npz")
        store.write_npz(path)
        written.append(path.name)
    return written


def _bound(figure: Measured, detail: dict[str, Any]) -> Bpd:
    return Bpd(
        total=figure.value,
        standard_error=math.nan if figure.standard_error is None else figure.standard_error,
        terms=tuple(detail["terms"]),
        prior=detail["prior"],
        images=figure.n,
    )


def pair_sheet(samples: Tensor, nearest: Tensor) -> Tensor:
    """uint8 `[C, H, W]`: rows of samples, and below each the image nearest to it; both uint8 `[N, C, H, W]`.

    What is transparent is over white, as the features see it.
    """
    samples, nearest, rows = opaque(samples), opaque(nearest), []
    for first in range(0, len(samples), PAIRS_IN_A_ROW):
        for images in (samples, nearest):
            part = images[first : first + PAIRS_IN_A_ROW]
            absent = PAIRS_IN_A_ROW - len(part)
            rows.append(torch.cat([part, torch.full((absent, *part.shape[1:]), 96, dtype=torch.uint8)]))
    return grid(torch.cat(rows), columns=PAIRS_IN_A_ROW)
