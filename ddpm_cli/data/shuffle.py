"""The order of an epoch's images where they are stored in blocks, such as tar files, few of which are read at a time.

As everything random it is a function of its key: no position is stored, and any place in it is found without the rest.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

from ddpm_cli.runtime.seeds import generator


@dataclass(frozen=True, eq=False)
class Blocks:
    """Where the images of a set are stored: those from `starts[b]` up to `starts[b + 1]` in block b."""

    starts: np.ndarray  # int64 [blocks + 1], from 0 to the number of images
    window: int  # how many of them are shuffled together, at least 1


class WindowedShuffle:
    """Each image once: the blocks in a random order, the images of `window` of them at a time shuffled together.

    All randomness comes from the stream named by `key`. With at most `window` blocks this is a permutation of all
    images; with more, images of blocks that are far apart in the order of the blocks are far apart in this one.
    """

    def __init__(self, blocks: Blocks, *key: int | str):
        self.blocks = blocks
        self.key = key
        sizes = np.diff(blocks.starts)
        order = torch.randperm(len(sizes), generator=generator(*key)).numpy()
        # Evenly, so that no epoch ends with a window of one block, whose images would be shuffled among themselves.
        self.windows = np.array_split(order, math.ceil(len(sizes) / blocks.window))
        self.ends = np.cumsum([sizes[window].sum() for window in self.windows])
        self._shuffled = functools.lru_cache(maxsize=2)(self._shuffle)  # a batch seldom straddles more windows

    def __getitem__(self, places: slice) -> np.ndarray:
        """int64 `[n]`: the images at these places in the order, but none of a window after the first one's."""
        window = int(np.searchsorted(self.ends, places.start, side="right"))
        start = self.ends[window - 1] if window > 0 else 0
        return self._shuffled(window)[places.start - start : places.stop - start]

    def _shuffle(self, window: int) -> np.ndarray:
        """int64 `[n]`: the images of one window in their order."""
        starts = self.blocks.starts
        blocks = self.windows[window].tolist()
        images = np.concatenate([np.arange(int(starts[block]), int(starts[block + 1])) for block in blocks])
        return images[torch.randperm(len(images), generator=generator(*self.key, window)).numpy()]
