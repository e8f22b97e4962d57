"""Small trainers, built by hand, and what tests ask of them."""

import torch

from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.schedule import cosine
from ddpm_cli.ema.ema import EMA
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.training.optimizers import adamw
from ddpm_cli.training.train_state import capture
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig


def make_trainer(
    *,
    seed: int = 0,
    dropout: float = 0.0,
    decay: float = 0.99,
    optimizer=adamw,
    device: str = "cpu",
    precision: str = "fp32",
    **config,
) -> Trainer:
    """A network of a second on digits, 8 x 8; `config` is the loop's."""
    images = digits(image_size=8)
    compute = choose_compute(device, precision)
    torch.manual_seed(seed)
    unet = UNet(8, 1, 16, (1, 2), 1, (4,), dropout, norm_groups=4)
    compute.place(unet)
    options = {"steps": 6, "batch_size": 16, "log_every": 1, "device": device, "precision": precision} | config
    ddpm = DDPM(unet, cosine(100)).to(compute.device)
    if TrainerConfig(**options).compiles(compute.device.type):
        compute.compile(unet, graphs=options["compile"] == "graphs")
    return Trainer(
        ddpm,
        BatchLoader(images, options["batch_size"], seed=seed),
        optimizer=optimizer(unet.parameters(), lr=2e-3),
        ema=EMA(unet, decays=[decay]),
        config=TrainerConfig(**options),
        compute=compute,
        seed=seed,
    )


def run(trainer: Trainer) -> list[float]:
    return [progress.losses.mean().item() for progress in trainer.run() if progress is not None]


def assert_same_state(one: Trainer, other: Trainer) -> None:
    state, expected = capture(one), capture(other)
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name
    averages, others = one.ema.model.state_dict(), other.ema.model.state_dict()
    for name, value in averages.items():
        assert torch.equal(value, others[name]), name
