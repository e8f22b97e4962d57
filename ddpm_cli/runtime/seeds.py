"""Where every random number comes from: a seed per purpose, step, epoch or image, so that nothing random is stored."""

import hashlib

import torch
from torch import Tensor


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

    Each image owns a CPU generator keyed on (seed, index of the image); calling the object returns the next draw of all
    of them, `[B, C, H, W]` in float32 on `device`.
    """

    def __init__(self, seed: int, indices: range, shape: tuple[int, int, int], device: torch.device | str = "cpu"):
        self.shape = shape
        self.device = torch.device(device)
        self.generators = [generator(seed, "image", index) for index in indices]

    def __call__(self) -> Tensor:
        # From pinned memory the copy to a GPU holds up nobody: the next draw is made while the GPU is at this step.
        on_gpu = self.device.type == "cuda"
        noise = torch.empty(len(self.generators), *self.shape, pin_memory=on_gpu)
        for image, of_image in zip(noise, self.generators, strict=True):
            image.normal_(generator=of_image)
        return noise.to(self.device, non_blocking=on_gpu)
