"""Warnings about a set of images from which little can be learned, with the option that helps."""

from collections.abc import Collection

import numpy as np

from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.data.stored_pixels import StoredPixels
from ddpm_cli.data.windows import Windows

LOOKED_AT = 256  # images, evenly spaced over the set; fewer if they are large
_MOST_BYTES = 2**24  # of pixels that are looked at
_SHARE_EQUAL = 0.9  # share of equal images at which the set counts as one image
_SHARE_BLANK = 0.5
_FEW_VALUES = 256 // 16
_HARDLY = 2  # of 255: images that differ from their mean by less can hardly be told apart
_CHANNELS = ("red", "green", "blue", "alpha")


def degenerate(images: ImageSet, read: np.ndarray, options: Collection[str]) -> list[str]:
    """A line for each thing that is wrong with a whole set, usually by an oversight.

    Args:
        read: uint8 `[n, C, H, W]`, some of the images, which are looked at if others are not available at once.
        options: names of the data's options: only these are suggested.
    """
    pixels, said = images.pixels, []
    count = max(2, min(LOOKED_AT, _MOST_BYTES // read[0].size))
    read = read[:count]
    if isinstance(pixels, np.ndarray | StoredPixels | Windows):
        read = pixels[np.unique(np.linspace(0, len(images) - 1, count).astype(np.int64))]
    said += _on_blank(read, options) or _on_values(read, options)
    return said + _on_equals(images, read)


def _on_blank(read: np.ndarray, options: Collection[str]) -> list[str]:
    for value, name in (255, "white"), (0, "transparent" if read.shape[1] == 4 else "black"):
        blank = int((read == value).all(axis=(1, 2, 3)).sum())
        if blank >= _SHARE_BLANK * len(read):
            help_ = ": data.background=ignore drops the alpha" if "background" in options else ""
            said = f"{blank:,} of {len(read):,} images looked at are entirely {name}"
            return [f"{said}, like pictures that are fully transparent{help_}"]
    return []


def _on_values(read: np.ndarray, options: Collection[str]) -> list[str]:
    said = []
    low, high = int(read.min()), int(read.max())
    if high - low < _FEW_VALUES:
        help_ = ""
        if "value_range" in options:
            help_ = ": set data.value_range=[LOW,HIGH] to the values of black and white in the files"
        said.append(f"all values are between {low} and {high}, of 0 to 255{help_}")
    constant = [place for place in range(read.shape[1]) if read[:, place].min() == read[:, place].max()]
    if read.shape[1] == 3 and not constant and (read == read[:, :1]).all():
        help_ = ": data.channels=1 trains on one channel" if "channels" in options else ""
        said.append(f"greyscale stored as RGB: all three channels are equal{help_}")
    elif len(constant) < read.shape[1]:
        names = _CHANNELS if read.shape[1] in (3, 4) else range(read.shape[1])
        said += [f"channel {names[place]} is {read[0, place, 0, 0]} in every pixel" for place in constant]
    return said


def _on_equals(images: ImageSet, read: np.ndarray) -> list[str]:
    if len(images) < 2:
        return []
    # The checksums of images in tar files are not of their pixels.
    checksums = images.checksums if images.blocks is None else None
    if checksums is not None:
        _, counts = np.unique(checksums, return_counts=True)
    elif len(read) > 1:
        _, counts = np.unique(read.reshape(len(read), -1), axis=0, return_counts=True)
    else:
        return []
    if counts.max() >= _SHARE_EQUAL * counts.sum():
        return [f"{counts.max():,} of {counts.sum():,} images are equal: the network can only learn that one"]
    if np.abs(read - read.mean(axis=0, dtype=np.float32)).max() < _HARDLY:
        return [f"the images differ from their mean by less than {_HARDLY} of 255: there is hardly anything to learn"]
    return []
