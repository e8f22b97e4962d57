"""From an image file to uint8 pixels of a given size.

Worker processes import this module and nothing else of ours: it needs only PIL and NumPy, which load in a fraction of
the time torch takes.
"""

import os
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# How a picture stored with an EXIF orientation is put upright; 1 and unknown values leave it as it is.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(path: str | os.PathLike[str], size: tuple[int, int], channels: int) -> np.ndarray:
    """uint8 `[channels, H, W]` of the image file at `path`, for `size` (H, W) in pixels and `channels` 1 or 3.

    The picture is put upright (EXIF), laid over white where transparent, scaled with antialiasing so that it covers
    `size`, and cropped about its centre. 16-bit grey is scaled to 8 bits. Of an animation this is the first frame.

    Raises ValueError naming the path for whatever cannot be read: not an image, truncated, a decompression bomb,
    floating-point pixels.
    """
    assert channels in (1, 3), channels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large; twice as large is refused
            with Image.open(path) as image:
                pixels = np.asarray(_upright_at(image, size, channels))
    except UnidentifiedImageError as error:
        raise ValueError(f"cannot read image {path}: not in a known image format") from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and others on broken files
        raise ValueError(f"cannot read image {path}: {str(error) or type(error).__name__}") from error
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_into(
    file: str | os.PathLike[str], offset: int, paths: Sequence[str], size: tuple[int, int], channels: int
) -> list[str]:
    """Write the images at `paths` into `file` from byte `offset` on: uint8 `[channels, H, W]`, one after another.

    Returns a message for each image that cannot be read; its bytes stay what they were. Raises OSError if `file` cannot
    be written.
    """
    failures = []
    with open(file, "r+b") as out:
        out.seek(offset)
        for path in paths:
            try:
                pixels = decode(path, size, channels)
            except ValueError as error:
                failures.append(str(error))
                out.seek(channels * size[0] * size[1], os.SEEK_CUR)
            else:
                out.write(pixels.tobytes())
    return failures


def _upright_at(image: Image.Image, size: tuple[int, int], channels: int) -> Image.Image:
    """The picture in mode L or RGB at `size` (H, W), upright."""
    height, width = size
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8):  # stored on its side; it is cheapest turned last, when it is small
        height, width = width, height
    # JPEG can leave out what a small picture does not need. From twice the target, antialiasing still has the say.
    drafted = image.draft(None, (2 * width, 2 * height))
    # The extent of the picture in drafted pixels is a fraction (draft rounds up): cropping by it avoids a stretch.
    extent = (image.width, image.height) if drafted is None else drafted[1][2:]
    scale = min(extent[0] / width, extent[1] / height)
    margin_x = max(0.0, (extent[0] - width * scale) / 2)  # rounding must not put the box outside the picture
    margin_y = max(0.0, (extent[1] - height * scale) / 2)
    box = (margin_x, margin_y, extent[0] - margin_x, extent[1] - margin_y)
    image = _flat(image).convert("L" if channels == 1 else "RGB")
    image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _flat(image: Image.Image) -> Image.Image:
    """The picture in 8 bits and without transparency, in a mode that converts to L and RGB."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert it to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _eight_bits(np.asarray(image).astype(np.int64))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


def _eight_bits(grey: np.ndarray) -> Image.Image:
    """Mode L from 16-bit grey `[H, W]`, by value: PIL's own conversion would clip everything above 255 to white."""
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"integer pixels from {grey.min()} to {grey.max()} do not fit 16 bits")
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
