"""From an image file to uint8 pixels of a given size.

Worker processes import this module: it needs only PIL and NumPy, which load in a fraction of the time torch takes.
"""

import contextlib
import errno
import io
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageMode, UnidentifiedImageError

from ddpm_cli.data.decoding_memory import MOST, LargeImageError, check_decoding, check_file_size
from ddpm_cli.data.framing import box_in, centre, packed, padded, scaled_size
from ddpm_cli.data.image_file import BadImage
from ddpm_cli.data.reading import AS_STORED, Reading, converted, mode_of
from ddpm_cli.io.openers import nonblocking

# Formats are recognised by content, as images are often misnamed. Not every format that PIL knows is allowed, though:
# for EPS it would run a program (Ghostscript). The formats that PIL imports first come first.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000")

# How an image with an EXIF orientation is turned upright; 1 and unknown values leave it as it is.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_EXHAUSTED = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}  # memory or file handles have run out: not the file's fault
_LONGEST_REASON = 200  # characters of PIL's message about a file, which may quote the file


class DecodingError(OSError):
    """Decoding cannot continue, and neither an image nor the destination of the pixels is the cause."""


class Written(NamedTuple):
    """The result of writing a list of images."""

    checksums: list[int]  # the CRC-32 of each image's pixels; 0 for images that were not written
    bad: list[BadImage]
    large: list[int]  # which of them take more memory than there is for one of several processes


def decode(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    channels: int,
    most: int = MOST,
    reading: Reading = AS_STORED,
) -> np.ndarray:
    """uint8 `[channels, H, W]` of the image file at `path`, for `size` (H, W) in pixels.

    The image is turned upright (EXIF), laid over the background where it is transparent, scaled with antialiasing to
    cover `size`, and cropped at its centre, or as `reading.crop` says (with "random" H or W may be more than that of
    `size`: see `framing`). 16-bit grey is scaled to 8 bits. Of an animation the first frame is taken, of a file of
    several pages the first page. There are 1, 3 or 4 `channels`: grey, RGB, or RGB and alpha, where the colours of
    fully transparent pixels are 0.

    Raises:
        LargeImageError: if decoding would take more than `most` bytes.
        ValueError: if the file holds no such image; it says why: not an image, truncated, a decompression bomb,
            floating-point pixels, or not a file but a FIFO or a device.
        OSError: if the file cannot be read now: removed, no permission, a failing disk.
        DecodingError: if memory or file handles have run out.
    """
    # PIL gets a file, not a path: it would map a BMP into memory, and if the file shrinks the process dies (SIGBUS).
    with _errors_explained(path), _opened(path, most) as file:
        return _decode(file, size, channels, most, reading)


def decode_bytes(
    content: bytes,
    size: tuple[int, int],
    channels: int,
    most: int = MOST,
    reading: Reading = AS_STORED,
    *,
    name: str,
) -> np.ndarray:
    """As `decode`, for the content of an image file; a DecodingError calls it `name`."""
    with _errors_explained(name):
        if not content:
            raise ValueError("the file is empty")
        return _decode(io.BytesIO(content), size, channels, most, reading)


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) in pixels of the upright image at `path`, read from its header. Raises as `decode`."""
    with _errors_explained(path), _opened(path, MOST) as file, _image_in(file) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _ON_ITS_SIDE else (height, width)


def is_grey(path: str | os.PathLike[str]) -> bool:
    """Whether the image at `path` is greyscale, read from its header. Raises as `decode`."""
    with _errors_explained(path), _opened(path, MOST) as file, _image_in(file) as image:
        return ImageMode.getmode(image.mode).basemode == "L"


def upright_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The whole image at `path`, turned upright and otherwise as it is stored. Raises as `decode`."""
    with _errors_explained(path), _opened(path, MOST) as file, _image_in(file) as image:
        check_decoding(image, file, image.mode, MOST)
        image.load()
        orientation = _orientation(image)
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image.copy()


def cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """An upright image as `decode` fits it to `size` (H, W): scaled to cover it, and cropped at its centre."""
    height, width = size
    return image.resize((width, height), Image.Resampling.BICUBIC, box=centre(image.size, width, height))


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str], most: int) -> Iterator[BinaryIO]:
    """Open the image file at `path`. Raises ValueError if it is none, or needs more than `most` bytes of memory."""
    with open(path, "rb", opener=nonblocking) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size == 0:
            raise ValueError("the file is empty")
        check_file_size(status.st_size, most)
        yield file


@contextlib.contextmanager
def _image_in(file: BinaryIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities in metadata; large pictures (twice as large is refused)
        with Image.open(file, formats=_formats()) as image:
            yield image


def decode_into(
    file: str | os.PathLike[str],
    root: str,
    size: tuple[int, int],
    channels: int,
    offset: int,
    names: Sequence[str],
    *,
    most: int = MOST,
    reading: Reading = AS_STORED,
) -> Written:
    """Write the images `names` below `root` into `file` from byte `offset` on, one after another.

    What is written is the result of `decode`, or, if windows of it are to be shown, of `framing.packed`. The bytes of
    images that cannot be decoded, or not within `most` bytes of memory, do not change. Raises OSError if `file` cannot
    be written, DecodingError as `decode`.
    """

    def decoded(name: str) -> np.ndarray:
        return decode(f"{root}/{name}", size, channels, most, reading)

    return write_into(file, offset, names, decoded, size if reading.crop == "random" else None)


def write_into(
    file: str | os.PathLike[str],
    offset: int,
    names: Sequence[str],
    decoded: Callable[[str], np.ndarray],
    windows: tuple[int, int] | None,
) -> Written:
    """As `decode_into`, for images that `decoded` returns for their names; `windows` is the (H, W) shown of them."""
    written = Written([0] * len(names), [], [])
    with open(file, "r+b") as out:
        for place, name in enumerate(names):
            try:
                picture = decoded(name)
            except DecodingError:
                raise
            except LargeImageError as error:
                if error.needed <= MOST:
                    written.large.append(place)
                else:
                    written.bad.append(BadImage(name, str(error)))
            except (ValueError, OSError) as error:
                reason = str(error.strerror) if isinstance(error, OSError) else str(error)
                written.bad.append(BadImage(name, reason, lasting=isinstance(error, ValueError)))
            else:
                content = picture.tobytes() if windows is None else packed(picture, windows)
                out.seek(offset + place * len(content))
                out.write(content)
                written.checksums[place] = zlib.crc32(content)
    return written


def _decode(file: BinaryIO, size: tuple[int, int], channels: int, most: int, reading: Reading) -> np.ndarray:
    """As `decode`; raises whatever PIL does."""
    with _image_in(file) as image:
        pixels = np.array(_fit(image, file, size, mode_of(channels), most, reading))
    if channels == 4:
        pixels[pixels[..., 3] == 0] = 0  # the hidden colours have no meaning, and differ from file to file
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextlib.contextmanager
def _errors_explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn exceptions about the image at `path` into those that `decode` raises."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError("not in a known image format") from error
    except LargeImageError:
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error and others on broken files
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or number in _EXHAUSTED:
            raise DecodingError(f"out of memory or file handles at {path}; use fewer data.workers") from error
        if number is not None and number != errno.EINVAL:  # EINVAL: a broken file sent PIL to a negative position
            raise
        raise ValueError(str(error)[:_LONGEST_REASON] or type(error).__name__) from error


def _formats() -> list[str]:
    """The FORMATS that this build of PIL can read."""
    Image.init()
    return [format for format in FORMATS if format in Image.OPEN]


def _fit(
    image: Image.Image, file: BinaryIO, size: tuple[int, int], mode: str, most: int, reading: Reading
) -> Image.Image:
    """The image in `mode`, upright, scaled and cropped for `size` (H, W) as `reading.crop` says."""
    height, width = size
    drafted = image.format in ("JPEG", "MPO")  # they are read at reduced size, see `_draft`
    if not drafted:
        check_decoding(image, file, mode, most)
        image.load()
    orientation = _orientation(image)
    if orientation in _ON_ITS_SIDE:  # turning is cheapest last, when the image is small
        height, width = width, height
    width, height = scaled_size(image.size, width, height, reading.crop)
    box = box_in(_draft(image, width, height), width, height, reading.crop)
    if drafted:
        check_decoding(image, file, mode, most)
    image = converted(image, mode, reading).resize((width, height), Image.Resampling.BICUBIC, box=box)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return padded(image, size, reading) if reading.crop == "pad" else image


def _draft(image: Image.Image, width: int, height: int) -> tuple[float, float]:
    """Let the JPEG decoder skip detail that `width` x `height` pixels do not need; returns the (width, height) decoded.

    These may be fractions (PIL rounds the size up): cropping by them avoids stretching the image.
    """
    drafted = image.draft(None, (2 * width, 2 * height))  # from twice the target, antialiasing still has the say
    return image.size if drafted is None else drafted[1][2:]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 (upright) if there is none, or if a good image has broken metadata."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # anything, from PIL's reader of TIFF tags; every viewer shows such a picture
        return 1
