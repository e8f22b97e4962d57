"""The figures of a model itself, without samples: `bpd` and `heldout`."""

from collections.abc import Generator
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from ddpm_cli.checkpoint.pretrained import Pretrained
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.data.holdout import selected
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.likelihood import bpd, bpd_calls, held_out_calls, held_out_loss
from ddpm_cli.evaluation.metrics import Measured
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.io.text import printable
from ddpm_cli.runtime.interruptible import finished

T = TypeVar("T")


def of_model(setting: Setting, pretrained: Pretrained, world: World) -> list[Measured]:
    """Of the first images that were held out; of a run that held none out, of those that it was trained on."""
    wanted = setting.options.metrics
    split, images = _images(setting)
    sha256 = None if images.fingerprint is None else images.fingerprint["images"]
    compared = {"name": images.name, "split": split, "n": len(images), "sha256": sha256}
    ddpm, batch = pretrained.ddpm, setting.options.batch_size
    common = {"compute": setting.compute, "seed": setting.options.seed, "batch_size": batch, "world": world}
    if ddpm.needs_labels and images.labels is None and {"bpd", "heldout"} & {*wanted}:
        raise ConfigError(
            "metrics: bpd and heldout need a label for each image (model.null_label=false), and "
            f"{printable(images.name)} has none"
        )
    found = []
    if "bpd" in wanted:
        calls = bpd_calls(ddpm, len(images), batch, world)
        bound = _with_bar(bpd(ddpm, images, **common), "bpd", calls, world)
        detail = {"terms": list(bound.terms), "decoder": bound.decoder, "prior": bound.prior, "split": split}
        found.append(_measured("bpd", bound.total, bound.standard_error, compared, detail))
    if "heldout" in wanted:
        calls = held_out_calls(len(images), batch, world)
        loss = _with_bar(held_out_loss(ddpm, images, **common), "heldout", calls, world)
        found.append(_measured("heldout", loss.loss, loss.standard_error, compared, {"by_t": loss.by_t}))
    return found


def images_text(measured: Measured) -> str:
    """Which images the model has been asked about."""
    compared = measured.compared or {}
    which = "were kept from training" if compared["split"] == "holdout" else "it was trained on"
    return f"{compared['n']:,} images of {printable(str(compared['name']))} that {which}"


def _images(setting: Setting) -> tuple[str, ImageSet]:
    data = setting.data()
    split, images = ("train", data.trained_on) if data.held_out is None else ("holdout", data.held_out)
    n = min(setting.options.likelihood_images, len(images))
    return split, images if n == len(images) else selected(images, np.arange(n))


def _with_bar(work: Generator[None, None, T], what: str, calls: int, world: World) -> T:
    hidden = None if world.main else True
    with tqdm(total=calls, desc=what, unit="step", disable=hidden, dynamic_ncols=True) as bar:
        return finished(work, bar.update)


def _measured(metric: str, value: float, error: float, compared: dict, detail: dict) -> Measured:
    return Measured(
        metric=metric,
        value=value,
        standard_error=error if error == error else None,  # of one image there is none
        n=compared["n"],
        detail=detail,
        of_features=False,
        compared=compared,
    )
