"""How several processes share what is to be looked at, so that each does as much as any other."""

import torch
from torch import Tensor

from ddpm_cli.distributed.process_group import World

ALONE = World()  # a process by itself


def share_of(world: World, count: int, batch_size: int) -> list[range]:
    """This rank's part of 0 .. count - 1 in batches: of every rank as many, and of the same sizes.

    Networks that are sharded are called by all ranks together. So the last places may lie beyond `count`: what comes of
    them belongs to nobody.
    """
    share = -(-count // world.size)
    first = world.rank * share
    return [range(start, min(start + batch_size, first + share)) for start in range(first, first + share, batch_size)]


def gathered(world: World, parts: list[Tensor], count: int) -> Tensor:
    """Of all ranks, what they made of their batches `[n, ...]`, in order: `[count, ...]`."""
    return world.gather(torch.cat(parts))[:count]
