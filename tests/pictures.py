"""Pictures that are made, not kept."""

import io
import tarfile

import numpy as np
from PIL import Image


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """An RGB picture without symmetry that survives JPEG and scaling."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes = b"", **more) -> None:
    """Put a member into a tar file that is written; `more` are other fields of its header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(content))
