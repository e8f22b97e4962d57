"""A network for 8 x 8 digits, trained for a minute: what the tables of variants and of solvers stand on."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import DPMSolverPP2M, Sampler
from ddpm_cli.ema.ema import EMA
from ddpm_cli.io.images import from_uint8, to_uint8
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.training.optimizers import adamw
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig

SAMPLES = 900  # of the 1,797 digits there are


def trained(marks: Sequence[int], **options) -> Iterator[DDPM]:
    """The EMA of one training at each of the steps `marks`; `options` are DDPM's, its schedule among them."""
    images = digits(image_size=8)
    compute = choose_compute("cpu", "fp32")
    torch.manual_seed(0)
    unet = UNet(8, 1, 16, (1, 2), 1, (4,), 0.0, norm_groups=8)
    compute.place(unet)
    config = TrainerConfig(steps=marks[-1], batch_size=64, warmup_steps=50, log_every=marks[-1], device="cpu")
    ddpm = DDPM(unet, **options)
    trainer = Trainer(
        ddpm,
        BatchLoader(images, 64, seed=0),
        optimizer=adamw(unet.parameters(), lr=2e-3),
        ema=EMA(unet, decays=(0.995,)),
        config=config,
        compute=compute,
        seed=0,
    )
    for _ in trainer.run():
        if trainer.step in marks:
            yield ddpm.with_model(trainer.ema.model)


def sampled(ddpm: DDPM, sampler: Sampler | None = None, *, seed: int = 0) -> Tensor:
    """`SAMPLES` images `[N, 1, 8, 8]` in [-1, 1], rounded as pictures are, from noise that the seed alone decides."""
    sampler = DPMSolverPP2M(steps=20) if sampler is None else sampler
    noise, times = ImageNoise(seed, range(SAMPLES), (1, 8, 8)), sampler.times(ddpm.schedule)
    *_, last = ddpm.reverse_process(sampler.solve(ddpm.denoiser(), ddpm.schedule, times, noise(), noise))
    return from_uint8(to_uint8(last))
