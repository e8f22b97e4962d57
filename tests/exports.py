"""Runs with one checkpoint of a network of random numbers, and what ddpm-export makes of them."""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import Metadata
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.conversion.export import start
from ddpm_cli.runtime.signals import Stop

OURS = "ddpm_cli.diffusion"
SMALL = {
    "image_size": 8,
    "in_channels": 1,
    "base_channels": 8,
    "channel_mults": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [4],
    "dropout": 0.1,
    "norm_groups": 4,
}
LINEAR = {"_target_": f"{OURS}.schedule.linear", "timesteps": 50, "beta_start": 0.001, "beta_end": 0.2}
OPTIONS = {
    "labels": "keep",
    "weights": "ema",
    "ema_length": None,
    "trust": [],
    "ckpt_sha256": None,
    "variance": None,
    "threshold": {"_target_": f"{OURS}.threshold.Static"},
}


def saved_run(
    place: Path,
    *,
    schedule: dict[str, Any] = LINEAR,
    prediction: str = "Epsilon",
    variance: str = "FixedSmall",
    label_dropout: float | None = None,
    classes: tuple[str, ...] = (),
    **model: Any,
) -> Path:
    """A run's directory with a checkpoint of step 7. `model`: options of the network, where not those of SMALL."""
    learned = variance == "LearnedRange"
    options = SMALL | ({"learn_variance": True} if learned else {}) | model
    config = {
        "model": {"_target_": "ddpm_cli.models.unet.UNet", **options},
        "schedule": schedule,
        "prediction": {"_target_": f"{OURS}.prediction.{prediction}"},
        "weighting": {"_target_": f"{OURS}.weighting.Uniform"},
        "variance": {"_target_": f"{OURS}.variance.{variance}"},
        "loss": {"_target_": f"{OURS}.loss.{'Hybrid' if learned else 'Simple'}"},
        "trainer": {"_target_": "ddpm_cli.training.trainer_config.TrainerConfig", "label_dropout": label_dropout},
    }
    network = build_ddpm(config).model
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        parameter.data = random_numbers(name, parameter.data, generator)
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    size = options["image_size"]
    shape = (options["in_channels"], *(size if isinstance(size, list) else (size, size)))
    checkpoint.save(
        place / "checkpoints",
        ema=weights,
        training={f"model.{name}": tensor for name, tensor in weights.items()},
        description=Metadata(step=7, image_shape=shape, images=0, config=config, versions={}, classes=classes),
    )
    return place


def random_numbers(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Weights with which a network of any depth answers with numbers about 1, at random in every part."""
    drawn = torch.randn(like.shape, generator=generator)
    if like.ndim > 1:
        return drawn / like[0].numel() ** 0.5
    return 0.2 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def export(run: Path, out: Path, **options: Any) -> Path:
    """What `ddpm-export` writes of a run, here in this process; `options` as of configs/export.yaml."""
    with mock.patch.object(sys, "argv", ["ddpm-export", f"ckpt={run}", f"out={out}"]):
        start({"ckpt": str(run), "out": str(out), **OPTIONS, **options}, Invocation(None, {}, None), Stop())
    return out
