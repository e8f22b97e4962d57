"""Small images, where what is not convolution counts: ours and diffusers' network by themselves, in turn."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from bench import network
from bench.cases import CASES, Place
from bench.clock import Contestant, Turn, entries, race

SHAPES = ((16, 64), (16, 16), (16, 1), (32, 16))  # side in pixels, and images of a batch
IMAGES = 128  # of a turn, at least
NETWORKS = ("ours", "diffusers")


def measured(place: Place, rounds: int) -> Iterator[dict]:
    """Images per second of the digits recipe's network, forward, and forward and backward."""
    for side, batch in SHAPES:
        told = ("data=digits", f"data.image_size={side}")
        case = replace(CASES["digits"], overrides=told, batch_sizes={place.device: batch})
        small = replace(place, case=case)
        network.check_same({name: network.sizes(small, name) for name in NETWORKS})
        for what, trains in (("forward", False), ("forward and backward", True)):
            everybody = [
                Contestant(name, batch, partial(_turn, small, name, trains), reference=name == "ours")
                for name in NETWORKS
            ]
            passes = max(2, IMAGES // batch)
            results = race(everybody, place.device, repetitions=passes, rounds=rounds)
            yield from entries(f"{side} x {side}, batch {batch}: {what}", "images/s", results, passes)


def _turn(place: Place, name: str, trains: bool) -> Turn:
    torch.manual_seed(0)
    model: nn.Module = network.NETWORKS[name](place).to(place.device).train(trains)
    x, t = network.inputs(place)

    def turn(repetitions: int) -> None:
        with torch.set_grad_enabled(trains):
            for _ in range(repetitions):
                said = network.answer(model, x, t)
                if trains:
                    model.zero_grad(set_to_none=True)
                    said.square().mean().backward()

    return turn
