"""Peers, trained as their authors ship them, and drawn by the sampler that draws ours. A process of its own for each.

Their networks are put into our DDPM with their own schedule and prediction: what differs is the training alone.
"""

import argparse
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import peer_denoising, peer_diffusers
from bench.cases import Place
from torch import Tensor, nn

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.noise_schedule import NoiseSchedule
from ddpm_cli.diffusion.prediction import Epsilon, Velocity
from ddpm_cli.diffusion.samplers import DPMSolverPP2MSDE
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.seeds import ImageNoise
from quality.sets import case, of_peers

CALLS = 25  # of the network, for an image, where there are as many timesteps
AT_A_TIME = 250


def calls(place: Place) -> int:
    return min(CALLS, place.config["schedule"]["timesteps"])


class Answering(nn.Module):
    """A peer's network with the answer of ours: a tensor."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is None
        out = self.network(x, t)
        return out if isinstance(out, Tensor) else out.sample


class OfDiffusers:
    """Its training script's loop; what is drawn is the EMA that `--use_ema` saves."""

    def __init__(self, place: Place):
        self.training = peer_diffusers.Training(place, "no", 0)

    def train(self, steps: int) -> None:
        self.training(steps)

    def ddpm(self) -> DDPM:
        model = copy.deepcopy(self.training.model)
        self.training.ema.copy_to(model.parameters())
        return DDPM(Answering(model), NoiseSchedule(self.training.noise_scheduler.betas), prediction=Epsilon())


class OfDenoisingDiffusion:
    """Its Trainer; what is drawn is the EMA that it draws."""

    def __init__(self, place: Place):
        self.training = peer_denoising.Training(place, "no", 0)

    def train(self, steps: int) -> None:
        self.training(steps)

    def ddpm(self) -> DDPM:
        diffusion: Any = self.training.trainer.ema.ema_model
        assert diffusion.objective == "pred_v"
        return DDPM(Answering(diffusion.model), NoiseSchedule(diffusion.betas), prediction=Velocity())


PEERS = {"diffusers": OfDiffusers, "denoising-diffusion-pytorch": OfDenoisingDiffusion}


def samples(ddpm: DDPM, shape: tuple[int, int, int], count: int, *, steps: int, seed: int) -> np.ndarray:
    """uint8 `[N, H, W, C]`, as ddpm-eval draws of a checkpoint."""
    sampler, drawn = DPMSolverPP2MSDE(steps=steps), []
    times = sampler.times(ddpm.schedule)
    for first in range(0, count, AT_A_TIME):
        noise = ImageNoise(seed, range(first, min(first + AT_A_TIME, count)), shape)
        *_, last = ddpm.reverse_process(sampler.solve(ddpm.denoiser(), ddpm.schedule, times, noise(), noise))
        drawn.append(to_uint8(last).permute(0, 2, 3, 1))
    return torch.cat(drawn).numpy()


def train(place: Place, peer: str, *, seed: int, marks: Sequence[int], count: int, out: Path) -> None:
    """Write `count` images `out`/STEP.npz as they are after each of `marks` steps."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    model = place.config["model"]
    shape = model["in_channels"], model["image_size"], model["image_size"]
    training, done = PEERS[peer](place), 0
    for mark in marks:
        training.train(mark - done)
        done = mark
        random = torch.get_rng_state()
        np.savez(out / f"{mark}.npz", samples(training.ddpm(), shape, count, steps=calls(place), seed=seed))
        torch.set_rng_state(random)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("set", str), ("peer", str), ("seed", int), ("marks", str), ("count", int)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    for name in ("directory", "cache", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    told = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(of_peers(case(told.set, told.cache)), "cpu", "fp32", told.directory)
    marks = [int(mark) for mark in told.marks.split(",")]
    train(place, told.peer, seed=told.seed, marks=marks, count=told.count, out=told.out)


if __name__ == "__main__":
    main()
