"""Pictures that a user gives to be edited, as uint8 tensors of the network's size."""

import os
from pathlib import Path

import torch
from torch import Tensor

from ddpm_cli.data.decode import decode
from ddpm_cli.data.reading import AS_STORED, Reading
from ddpm_cli.data.scan import find_images, kinds_text


def read_pictures(path: str, shape: tuple[int, int, int]) -> Tensor:
    """The picture at `path`, or all pictures in that folder, uint8 `[K, C, H, W]` of `shape` (C, H, W).

    Transparency is kept if there is a channel for it, otherwise laid over white.

    Raises:
        ValueError: naming the file, if one cannot be decoded, or the folder, if it holds none.
    """
    return torch.stack([_decoded(file, shape) for file in picture_files(path)])


def picture_files(path: str) -> list[Path]:
    """The picture at `path`, or all pictures in that folder, by name: everything that the decoder reads but our output.

    Raises:
        ValueError: naming files in the folder that should be pictures and are not, or the folder, if it holds none.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    found = find_images(os.fspath(place), extensions=None)
    if found.bad:
        raise ValueError(found.bad[0].line(os.fspath(place)))
    if not found.images:
        there = f"; left out: {kinds_text(found.left_out)}" if found.left_out else ""
        raise ValueError(f"no pictures in {place}{there}")
    return [place / file.name for file in found.images]


def _decoded(file: Path, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    reading = Reading(background="keep") if channels == 4 else AS_STORED
    try:
        return torch.from_numpy(decode(file, (height, width), channels, reading=reading).copy())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
