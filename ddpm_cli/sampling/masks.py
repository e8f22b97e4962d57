"""Inpainting masks, as users draw them: where it is white, where labels are 1, or by transparency."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ddpm_cli.data.decode import cropped, upright_picture, upright_size
from ddpm_cli.io.text import printable

_WHITE = 128  # of 255: this and more is white, and opaque
_NEARLY = 16  # of 255: what differs by this much from black and white is another tone


class _Size(NamedTuple):
    height: int  # pixels
    width: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"


def read_mask(path: str, size: tuple[int, int], pictures: list[Path]) -> Tensor:
    """bool `[1, H, W]` of `size` (H, W), True where the mask at `path` says to paint in `pictures`.

    The mask has the size or the aspect ratio of every picture, and is scaled and cropped like it; or it is of `size`
    itself, drawn on the cropped picture. See `whiteness` for what says where to paint.

    Raises:
        ValueError: naming the file, if it cannot be decoded, does not fit a picture, or is white everywhere or nowhere.
    """
    file = Path(path).expanduser()
    try:
        whole = whiteness(upright_picture(file))
        given = _Size(whole.height, whole.width)
        if given != size:
            for picture in pictures:
                _check_fits(given, _Size(*upright_size(picture)), picture, _Size(*size))
    except ValueError as error:
        raise ValueError(f"{printable(str(path))}: {error}") from error
    white = np.asarray(cropped(whole, size)) >= _WHITE
    if not white.any() or white.all():
        raise ValueError(f"{printable(str(path))} {_without_two_sides(np.asarray(whole) >= _WHITE, white, size)}")
    return torch.from_numpy(white)[None]


def whiteness(mask: Image.Image) -> Image.Image:
    """Mode L of the same size, 255 where to paint and 0 where to keep.

    In a mask of one layer, brightness says where to paint; a mask with only the values 0 and 1 is a label, 1 where to
    paint. With transparency, it depends on the opaque pixels: white strokes say where to paint, black strokes what to
    keep; an opaque mask in black and white is taken as it is; in a picture with a part cut out, the hole is painted.
    """
    if mask.has_transparency_data:
        layers = mask.convert("RGBA")
        alpha = layers.getchannel("A")
        opaque = np.asarray(alpha) >= _WHITE
        if opaque.any() and not opaque.all():
            return _by_alpha(layers, alpha, opaque)
        mask = layers.convert("RGB")
    labels = _labels(mask)
    if labels is not None:
        return Image.fromarray(labels * np.uint8(255))
    if mask.mode == "I" or mask.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(mask).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
    if mask.mode == "F":
        return Image.fromarray((np.nan_to_num(np.asarray(mask)).clip(0, 1) * 255).astype(np.uint8))
    return mask.convert("L")


def _by_alpha(layers: Image.Image, alpha: Image.Image, opaque: np.ndarray) -> Image.Image:
    tones = np.asarray(layers.convert("RGB").convert("L"))
    seen = tones[opaque]
    if (seen >= 255 - _NEARLY).all():
        return alpha
    if ((seen < _NEARLY) | (seen >= 255 - _NEARLY)).all() and not (seen < _NEARLY).all():
        return Image.fromarray(np.where(opaque, tones, np.uint8(0)))
    return alpha.point(lambda value: 255 - value)


def _labels(mask: Image.Image) -> np.ndarray | None:
    """uint8 `[H, W]` of 0 and 1, for an image without other values; None for others."""
    if mask.mode not in ("L", "P", "I", "F", "RGB") and not mask.mode.startswith("I;16"):
        return None
    numbers = np.asarray(mask)
    if numbers.ndim == 3:
        numbers = numbers.max(axis=2)
    if not np.isin(numbers, (0, 1)).all() or not numbers.any():
        return None
    if mask.mode == "P":  # indices into a palette: if its colours are black and white, the colours count
        tones = np.asarray(mask.convert("L"))
        if tones.min() < _NEARLY and tones.max() >= 255 - _NEARLY:
            return (tones >= _WHITE).astype(np.uint8)
    return numbers.astype(np.uint8)


def _check_fits(mask: _Size, picture: _Size, file: Path, size: _Size) -> None:
    """Raise ValueError unless the mask has the picture's aspect ratio, to the pixel on one side."""
    as_high = round(picture.height * mask.width / picture.width) == mask.height
    as_wide = round(picture.width * mask.height / picture.height) == mask.width
    if not (as_high or as_wide):
        raise ValueError(
            f"the mask is {mask}, {printable(str(file))} is {picture} (height x width): a mask must have its "
            f"picture's size or aspect ratio, or the network's size, {size}"
        )


def _without_two_sides(whole: np.ndarray, white: np.ndarray, size: tuple[int, int]) -> str:
    meaning = "white is painted, black is kept"
    if white.any():
        inside = " within the cropped picture" if not whole.all() else ""
        return f"is white everywhere{inside}: {meaning}"
    if not whole.any():
        return f"has no white: {meaning}"
    return f"loses all its white when it is cropped and scaled like its picture, to {_Size(*size)}: {meaning}"
