"""denoising-diffusion-pytorch: its own trainer, told to go on for a few steps at a time, and its own sampling."""

import contextlib
import io
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from bench import network
from bench.cases import Place
from bench.clock import Turn

LEAST_BATCH = 16  # its trainer refuses smaller ones


def _diffusion(place: Place, **options) -> nn.Module:
    from denoising_diffusion_pytorch import GaussianDiffusion

    model = network.of_denoising_diffusion_pytorch(place)
    timesteps = place.config["schedule"]["timesteps"]
    return GaussianDiffusion(model, image_size=network.shape(place)[1], timesteps=timesteps, **options)


class Training:
    """Its trainer as it is, at our batch size; FID and samples are not drawn on the way."""

    def __init__(self, place: Place, mixed_precision: str, loaders: int):
        del loaders  # it takes a process for every CPU
        from denoising_diffusion_pytorch import Trainer

        results = Path(place.directory) / "denoising-diffusion-pytorch"
        self.trainer = Trainer(
            _diffusion(place),
            str(place.pictures),
            train_batch_size=max(LEAST_BATCH, place.batch_size),
            augment_horizontal_flip=place.config["data"]["flip"] == "horizontal",
            amp=mixed_precision != "no",
            mixed_precision_type="fp16" if mixed_precision == "fp16" else "bf16",
            calculate_fid=False,
            save_and_sample_every=10**9,
            results_folder=str(results),
        )
        if place.batch_size < LEAST_BATCH:
            self.trainer.dl = self._smaller(place.batch_size)
        self.trainer.train_num_steps = 0

    def _smaller(self, batch_size: int):
        from denoising_diffusion_pytorch.denoising_diffusion_pytorch import cpu_count, cycle

        loader = DataLoader(
            self.trainer.ds, batch_size=batch_size, shuffle=True, pin_memory=True, num_workers=cpu_count()
        )
        return cycle(self.trainer.accelerator.prepare(loader))

    def __call__(self, repetitions: int) -> None:
        self.trainer.train_num_steps += repetitions
        # Its progress bar, and that it is done.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.trainer.train()


def sampling(place: Place, images: int, calls: int) -> Turn:
    torch.manual_seed(0)
    diffusion = _diffusion(place, sampling_timesteps=calls).to(place.device).eval()

    def turn(repetitions: int) -> None:
        with network.autocast(place):
            for _ in range(repetitions):
                diffusion.sample(batch_size=images).cpu()

    return turn
