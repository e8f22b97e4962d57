"""What a peer can be asked for, and which of them are there."""

import importlib.metadata
import os
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bench import network, peer_denoising, peer_diffusers
from bench.cases import Place
from bench.clock import Contestant, Turn

NEEDS = {
    "diffusers": ("diffusers", "accelerate"),
    "denoising-diffusion-pytorch": ("denoising-diffusion-pytorch", "accelerate"),
}


def missing(peer: str) -> list[str]:
    """The packages without which this peer cannot be run."""
    return [package for package in NEEDS[peer] if version(package) is None]


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def there() -> list[str]:
    return [peer for peer in NEEDS if not missing(peer)]


def training(place: Place) -> list[Contestant]:
    """As their authors ship them, in float32; and where we compute in bf16, in bf16 too, with processes that decode.

    Those in float32 come first: accelerate keeps one precision for a process, that of the last.
    """
    loops = {"diffusers": peer_diffusers.Training, "denoising-diffusion-pytorch": peer_denoising.Training}
    found = []
    for precision in dict.fromkeys(("fp32", place.precision)):
        for peer in there():
            name = peer if place.precision == "fp32" else f"{peer}, {_manner(peer, precision)}"
            prepare = partial(_fresh, loops[peer], place, precision)
            # Their authors leave cuDNN alone; at our precision they get what we have.
            found.append(Contestant(name, place.batch_size, prepare, cudnn_benchmark=precision != "fp32"))
    return found


def _manner(peer: str, precision: str) -> str:
    if precision == "fp32":
        return "as shipped: fp32"
    # denoising-diffusion-pytorch has a process per CPU anyway.
    return f"{precision}, {loaders()} loading processes" if peer == "diffusers" else precision


def loaders() -> int:
    return min(8, os.cpu_count() or 1)


def _fresh(loop: Callable[..., Turn], place: Place, precision: str) -> Turn:
    from accelerate.state import AcceleratorState

    wanted = "no" if precision == "fp32" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    torch.manual_seed(0)
    return loop(place, wanted, 0 if precision == "fp32" else loaders())


def forward(place: Place) -> list[Contestant]:
    return [
        Contestant(peer, place.batch_size, partial(_forward, place, peer), cudnn_benchmark=True) for peer in there()
    ]


def sampling(place: Place, calls: int) -> list[Contestant]:
    """DDIM, each by its own loop."""
    loops = {"diffusers": peer_diffusers.sampling, "denoising-diffusion-pytorch": peer_denoising.sampling}
    images = place.case.sampled[place.device]
    return [
        Contestant(peer, images * calls, partial(loops[peer], place, images, calls), cudnn_benchmark=True)
        for peer in there()
    ]


def _forward(place: Place, peer: str) -> Turn:
    torch.manual_seed(0)
    model: nn.Module = network.NETWORKS[peer](place).to(place.device).eval()
    x, t = network.inputs(place)

    @torch.no_grad()
    def turn(repetitions: int) -> None:
        with network.autocast(place):
            for _ in range(repetitions):
                network.answer(model, x, t)

    return turn
