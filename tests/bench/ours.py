"""Ours: the real trainer of a composed configuration, the network alone, and sampling."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch

from bench import network
from bench.cases import Place
from bench.clock import Contestant, Turn
from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.distributed.process_group import World
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.device import Compute, choose_compute
from ddpm_cli.training.build import build_training
from ddpm_cli.training.step_stats import Progress
from ddpm_cli.training.trainer import Trainer


def named(device: str, way: str) -> str:
    return "ours" if device == "cpu" else f"ours, compile={way}"


def _contestants(
    place: Place, amount: float, prepare_way: Callable[[str], Turn], ways: tuple[str, ...], *, trains: bool = True
) -> list[Contestant]:
    return [
        Contestant(
            named(place.device, way),
            amount,
            partial(prepare_way, way),
            reference=way == ways[0],
            cudnn_benchmark=trains,  # ddpm-sample leaves it off
        )
        for way in ways
    ]


def training(place: Place) -> list[Contestant]:
    """Trainer.run, as ddpm-train has it."""
    return _contestants(place, place.batch_size, lambda way: Training(place, way), place.compiled)


def forward(place: Place) -> list[Contestant]:
    return _contestants(place, place.batch_size, partial(_forward, place), place.compiled)


def sampling(place: Place, calls: int) -> list[Contestant]:
    """DDIM in `calls` calls of the network, to uint8 images on the CPU; counted in images times calls."""
    images = place.case.sampled[place.device]
    ways = tuple(way for way in place.compiled if way != "graphs")  # which ddpm-sample has not
    return _contestants(place, images * calls, partial(_sampling, place, images, calls), ways, trains=False)


class Training:
    """Steps of a run that has just begun; `progress` is what it said of them."""

    def __init__(self, place: Place, way: str):
        log_every = place.case.turns[place.device]  # so that every turn pays for one entry of the log
        config = place.compose(
            f"trainer.log_every={log_every}", f"trainer.compile={way}", f"trainer.precision={place.precision}"
        )
        self.trainer = build_training(TrainOptions(**config), World()).trainer
        self.steps = self.trainer.run()
        self.progress: list[Progress] = []

    def __call__(self, repetitions: int) -> None:
        for _ in range(repetitions):
            progress = next(self.steps)
            if progress is not None:
                self.progress.append(progress)


def shares(place: Place, steps: int, *, warm_up: int) -> dict[str, list[float]]:
    """Of a step's time, by step: what is not spent in the network, and (of each turn) what is spent waiting for data.

    Network: from the beginning of its forward to the end of its backward pass, the loss and q_sample included.
    """
    run = Training(place, place.compiled[0])
    run(warm_up)
    run.progress.clear()
    marks: list[tuple] = []
    with _marked(run.trainer, lambda: marks.append(_mark(place.device))):
        for _ in range(steps):
            marks.append(_mark(place.device))
            run(1)
        marks.append(_mark(place.device))
    if place.device == "cuda":
        torch.cuda.synchronize()
    other = []
    for i in range(0, 3 * steps, 3):  # of each step: its beginning, and that and the end of its network
        begin, network_begin, network_end, end = marks[i : i + 4]
        other.append(1 - _between(network_begin, network_end) / _between(begin, end))
    return {"not the network": other, "waiting for data": [said.data_fraction for said in run.progress]}


@contextmanager
def _marked(trainer: Trainer, mark: Callable[[], None]) -> Iterator[None]:
    """Inside, `mark` is called where a forward pass begins and where its backward pass ends."""
    losses, backward = trainer.parallel.losses, torch.Tensor.backward

    def marked_losses(*arguments):
        mark()
        return losses(*arguments)

    def marked_backward(tensor: torch.Tensor) -> None:
        backward(tensor)
        mark()

    with (
        mock.patch.object(trainer.parallel, "losses", marked_losses),
        mock.patch.object(torch.Tensor, "backward", marked_backward),
    ):
        yield


def _mark(device: str):
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begin, end) -> float:
    return end - begin if isinstance(begin, float) else begin.elapsed_time(end) / 1000


def _model(place: Place, way: str) -> tuple[DDPM, Compute]:
    """A network with its diffusion as ddpm-sample has it."""
    compute = choose_compute(place.device, place.precision)
    torch.manual_seed(0)
    ddpm = build_ddpm(place.config)
    compute.place(ddpm)
    if way != "false":
        compute.compile(ddpm.model, graphs=way == "graphs")
    return ddpm.eval(), compute


def _forward(place: Place, way: str) -> Turn:
    ddpm, compute = _model(place, way)
    x, t = network.inputs(place)

    @torch.no_grad()
    def turn(repetitions: int) -> None:
        with compute.autocast():
            for _ in range(repetitions):
                ddpm.model(x, t)

    return turn


def _sampling(place: Place, images: int, calls: int, way: str) -> Turn:
    ddpm, compute = _model(place, way)
    sampler = instantiate(place.config["sampler"] | {"steps": calls}, "sampler")
    channels, height, width = network.shape(place)

    def turn(repetitions: int) -> None:
        with compute.autocast():
            for _ in range(repetitions):
                drawn = ddpm.sample(images, (height, width), channels, show_progress=False, sampler=sampler)
                to_uint8(drawn).cpu()

    return turn
