"""The source of all random numbers: a seed per purpose, step, epoch or image, so that no random state is stored."""

import hashlib
import math

import torch
from torch import Tensor

from ddpm_cli.runtime.philox import WORD, box_muller, philox

# A part of what images in the making are known by: another once `ImageNoise` draws other bits.
IMAGE_NOISE = "philox4x32-10, box-muller, heron"


def derive_seed(*key: int | str) -> int:
    """Seed in [0, 2**63) for a purpose named by `key`, e.g. `derive_seed(seed, "noise", step)`.

    Distinct keys give unrelated seeds. The key is hashed because torch's CPU generator looks only at the low 32 bits
    of what it is given, and because `seed + step` would make neighbouring runs share their noise.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` on `device` at the start of the stream named by `key`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*key))


class ImageNoise:
    """Standard normal noise for sampling in which image i is the same in every batch, on every device.

    Number by number it is a function of the seed, i, and how many draws there were before. Philox's key is
    `derive_seed(seed, "image")`, and its counter (block, draw, low word of i, high word of i). Of K blocks, block n
    makes four numbers of the image: those at n, K + n, 2 K + n and 3 K + n, as far as there are so many.

    Calling the object returns the next draw of all images, `[B, C, H, W]` in float32 on `device`.
    """

    def __init__(self, seed: int, indices: range, shape: tuple[int, int, int], device: torch.device | str = "cpu"):
        self.shape = (len(indices), *shape)
        self.size = math.prod(shape)
        self.key = derive_seed(seed, "image")
        self.blocks = torch.arange(math.ceil(self.size / 4), device=device)
        self.draws = torch.zeros((), dtype=torch.int64, device=device)
        image = torch.arange(indices.start, indices.stop, indices.step, device=device)[:, None]
        self.image = image & WORD, image >> 32

    def __call__(self) -> Tensor:
        a, b, c, d = philox((self.blocks, self.draws, *self.image), self.key)
        self.draws += 1
        numbers = torch.cat(box_muller(torch.stack((a, c), dim=1), torch.stack((b, d), dim=1)), dim=1)  # [B, 4, K]
        return numbers.flatten(1)[:, : self.size].contiguous().view(self.shape)
