"""Which files the decoder reads, recognised by their names, or by their first bytes if the name does not tell."""

import os
import re
from collections.abc import Sequence
from io import FileIO

from ddpm_cli.io.openers import nonblocking

# The extensions of files that count as images by default.
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp")
# The extensions of files that the decoder reads.
READABLE = (
    *EXTENSIONS,
    *("gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif", "jp2", "j2k", "jpx", "jfif", "jpe", "apng", "dib"),
)

_HEAD = 16  # bytes that identify a format
# Formats whose first bytes mean nothing else.
_SURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
# Formats whose first bytes may be the beginning of a text, or of a camera's or a microscope's own kind of file.
_LIKELY = re.compile(rb"BM....\0\0\0\0|II\*\0|MM\0\*|P[1-6]\s+[0-9#]", re.DOTALL)
# Files of these names are not opened to see what they hold: there may be one beside each image, or they are half an
# image or an old one.
_NO_IMAGES = re.compile(
    r"\.(txt|caption|tags|json|jsonl|csv|tsv|xml|ya?ml|md|html?|log|py|cls|npy|npz|pt|pth|safetensors|h5|pkl|parquet|"
    r"zip|tar|gz|tgz|7z|rar|mp4|mov|avi|mkv|webm|pdf|svg|bak|orig|old|tmp|part|partial|crdownload)$|~$",
    re.IGNORECASE,
)


def has_extension(name: str, extensions: Sequence[str]) -> bool:
    """Whether the name of a file ends in a dot and one of `extensions`, which are in lower case."""
    return name.lower().endswith(tuple(f".{extension}" for extension in extensions))


def is_image_inside(path: str, name: str) -> bool:
    """Whether a plain file without an image's name holds an image that the decoder reads; False if it is unreadable."""
    if _NO_IMAGES.search(name):
        return False
    try:
        with FileIO(path, opener=nonblocking) as file:
            head = file.read(_HEAD) or b""
    except OSError:
        return False
    return _SURE.match(head) is not None or ("." not in name and _LIKELY.match(head) is not None)


def kind_of(name: str) -> str:
    """The kind that a file counts as: what follows the last dot of its name, in lower case."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9_~-]{1,12}", suffix) else "without a suffix"
