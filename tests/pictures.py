"""Pictures that are made, not kept."""

import numpy as np
from PIL import Image


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """An RGB picture without symmetry that survives JPEG and scaling."""
    coarse = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
