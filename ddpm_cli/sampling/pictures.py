"""Pictures that a user gives to be changed, and masks of them, as uint8 tensors of the network's size."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli.data.decode import decode
from ddpm_cli.data.scan import find_images


def read_pictures(path: str, shape: tuple[int, int, int]) -> Tensor:
    """The picture at `path`, or those in that folder, uint8 `[K, C, H, W]` of `shape` (C, H, W).

    Raises:
        ValueError: naming the file, if one cannot be decoded, or the folder, if it holds none.
    """
    place = Path(path).expanduser()
    names = [place]
    if place.is_dir():
        found, bad = find_images(os.fspath(place))
        if bad:
            raise ValueError(bad[0].line(os.fspath(place)))
        names = [place / file.name for file in found]
        if not names:
            raise ValueError(f"there are no pictures in {place}")
    return torch.stack([_decoded(name, shape) for name in names])


def read_mask(path: str, size: tuple[int, int]) -> Tensor:
    """bool `[1, H, W]` of `size` (H, W), True where the picture at `path` is white.

    Raises:
        ValueError: naming the file, if it cannot be decoded, or is white everywhere or nowhere.
    """
    white = _decoded(Path(path).expanduser(), (1, *size)) >= 128
    if not white.any() or white.all():
        where = "nowhere" if not white.any() else "everywhere"
        raise ValueError(f"{path} is white {where}: white is where to paint, black what to keep")
    return white


def _decoded(file: Path, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    try:
        return torch.from_numpy(decode(file, (height, width), channels).copy())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
