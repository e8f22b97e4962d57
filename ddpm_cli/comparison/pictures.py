"""Last previews of runs, small enough to fit side by side on a page."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from ddpm_cli.comparison import record_files
from ddpm_cli.comparison.run import Run
from ddpm_cli.io.text import printable

MOST_PICTURES = 24
MOST_BYTES = 6 * 2**20  # of all of them on a page
LONGEST_SIDE = 320  # pixels
MOST_FILE = 2**25  # bytes
MOST_PIXELS = 2**24


@dataclass(frozen=True)
class Picture:
    """An image of a run as a `data:` URL, and its size in pixels."""

    run: int
    step: int
    address: str
    width: int
    height: int


def previews(runs: Iterable[tuple[int, Run]]) -> tuple[list[Picture], list[str]]:
    """The last previews of runs, in their order, and lines on those that are left out."""
    found: list[Picture] = []
    left_out: list[str] = []
    too_many = 0
    size = 0
    for i, run in runs:
        if run.preview is None:
            continue
        if len(found) >= MOST_PICTURES or size >= MOST_BYTES:
            too_many += 1
            continue
        step, file = run.preview
        try:
            picture = _scaled(record_files.read(file, MOST_FILE))
        except Exception as error:  # whatever a library makes of a file that is anybody's
            left_out.append(f"{printable(str(file))}: cannot be shown ({printable(str(error))[:200]})")
            continue
        content = io.BytesIO()
        picture.save(content, format="PNG", optimize=True)
        size += len(content.getvalue())
        address = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
        found.append(Picture(i, step, address, *picture.size))
    if too_many:
        left_out.append(f"the previews of {too_many} more {'run' if too_many == 1 else 'runs'} are not shown")
    return found, left_out


def _scaled(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels: too large")
        picture = image.convert("L" if image.mode in ("1", "L") else "RGB")
    scale = min(1.0, LONGEST_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS) if scale < 1 else picture
