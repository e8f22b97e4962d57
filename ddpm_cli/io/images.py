"""Pictures out of tensors: [-1, 1] to uint8, grids, film strips, files.

Images have 1, 3 or 4 channels: grey, RGB, or RGB and alpha.
"""

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ddpm_cli.io import durable

BETWEEN = 96  # grey: black and white are what pictures often end in
CHECKS = (204, 153)  # grey: the two fields of the checkerboard that shows what is transparent
CHECK_PIXELS = 8  # a side
PLAIN_TEXT = 256  # characters of a text in a PNG that are not compressed
SMALLEST_VIEW = 64  # pixels: smaller images are enlarged by a whole factor, so that a person can look at them


def to_uint8(images: Tensor) -> Tensor:
    """`[..., H, W]` in [-1, 1] to uint8 0..255, rounded to nearest; what lies outside is clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 in [-1, 1]: the way back from `to_uint8`."""
    return images.float() / 127.5 - 1


def grid(images: Tensor, *, columns: int | None = None, padding: int = 2) -> Tensor:
    """Lay out uint8 images `[N, C, H, W]` row by row on grey, `columns` in a row (default: as square as possible).

    Where there is alpha, the grey is opaque.

    Returns:
        uint8 `[C, rows * (H + padding) + padding, columns * (W + padding) + padding]`, where H and W are the sizes
        after enlarging tiny images by repeating their pixels.
    """
    factor = math.ceil(SMALLEST_VIEW / max(images.shape[-2:]))
    images = images.cpu().repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    n, c, height, width = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    cell_height, cell_width = height + padding, width + padding
    size = (c, rows * cell_height + padding, columns * cell_width + padding)
    canvas = torch.full(size, BETWEEN, dtype=torch.uint8)
    canvas[3:] = 255
    for i, image in enumerate(images):
        top, left = i // columns * cell_height + padding, i % columns * cell_width + padding
        canvas[:, top : top + height, left : left + width] = image
    return canvas


def on_checks(image: Tensor) -> Tensor:
    """A uint8 picture `[4, H, W]` laid over a checkerboard, `[3, H, W]`, to look at; another one as it is."""
    if image.shape[0] != 4:
        return image
    _, height, width = image.shape
    fields = (torch.arange(height)[:, None] // CHECK_PIXELS + torch.arange(width) // CHECK_PIXELS) % 2
    board = torch.tensor(CHECKS)[fields]
    colours, alpha = image[:3].int(), image[3].int()
    return ((colours * alpha + board * (255 - alpha) + 127) // 255).to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image `[C, H, W]` as a PIL image."""
    array = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def as_png(image: Tensor, about: Mapping[str, str] | None = None) -> bytes:
    """A uint8 image `[C, H, W]` as the content of a PNG file.

    Args:
        about: texts by keyword that the file holds beside the pixels; long ones are compressed.
    """
    file, texts = io.BytesIO(), PngInfo()
    for keyword, text in (about or {}).items():
        texts.add_text(keyword, text, zip=len(text) > PLAIN_TEXT)
    to_pil(image).save(file, format="PNG", pnginfo=texts)
    return file.getvalue()


def save_png(image: Tensor | bytes, path: Path, about: Mapping[str, str] | None = None) -> None:
    """Write a uint8 image `[C, H, W]`, or what `as_png` has made of one; a reader never sees half a file.

    Args:
        about: as of `as_png`, where that is yet to be called.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    with durable.errors_naming(path):
        temporary.write_bytes(image if isinstance(image, bytes) else as_png(image, about))
    os.replace(temporary, path)


def save_gif(frames: list[Tensor], path: Path, *, frame_ms: int = 80, last_ms: int = 1500) -> None:
    """Write uint8 frames `[C, H, W]` as an endless animation that rests on the last one."""
    pictures = [to_pil(frame) for frame in frames]
    durations = [frame_ms] * (len(frames) - 1) + [last_ms]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
