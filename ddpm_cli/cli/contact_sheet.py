"""One image of a whole sampling sweep: a row for each choice, a column for each value of the last option swept."""

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddpm_cli.io.images import BETWEEN

LARGEST_CELL = 400  # pixels: larger pictures are scaled down
MARGIN = 8  # pixels between cells
TEXT_PIXELS = 16


def contact_sheet(pictures: Sequence[tuple[Sequence[str], Path | None]]) -> Image.Image | None:
    """Lay out the images of a sweep's runs.

    Args:
        pictures: of each run its overrides, as KEY=VALUE in the order of the command line, and its picture; None: it
            has none, and its cell stays empty.

    Returns:
        RGB; None if there are not two pictures to compare.
    """
    if sum(file is not None for _, file in pictures) < 2:
        return None
    overrides = [[" ".join(override.splitlines()) for override in run] for run, _ in pictures]
    varying = [i for i in range(len(overrides[0])) if len({run[i] for run in overrides}) > 1]
    last = varying[-1] if varying else 0
    places = {}
    for run, (_, file) in zip(overrides, pictures, strict=True):
        places["  ".join(run[i] for i in varying if i != last), run[last]] = file
    rows, columns = (list(dict.fromkeys(key[i] for key in places)) for i in (0, 1))
    cells = {key: _cell(file) for key, file in places.items() if file is not None}
    width, height = (max(cell.size[side] for cell in cells.values()) for side in (0, 1))
    font = ImageFont.load_default(TEXT_PIXELS)
    width = max(width, *(math.ceil(font.getlength(column)) for column in columns))
    left = MARGIN + max(math.ceil(font.getlength(row)) for row in rows) + (MARGIN if rows != [""] else 0)
    top = 2 * MARGIN + TEXT_PIXELS
    size = (left + len(columns) * (width + MARGIN), top + len(rows) * (height + MARGIN))
    sheet = Image.new("RGB", size, (BETWEEN,) * 3)
    draw = ImageDraw.Draw(sheet)
    for i, column in enumerate(columns):
        draw.text((left + i * (width + MARGIN), MARGIN), column, "white", font)
    for j, row in enumerate(rows):
        draw.text((MARGIN, top + j * (height + MARGIN)), row, "white", font)
        for i, column in enumerate(columns):
            if (row, column) in cells:
                sheet.paste(cells[row, column], (left + i * (width + MARGIN), top + j * (height + MARGIN)))
    return sheet


def _cell(file: Path) -> Image.Image:
    with Image.open(file) as image:
        cell = image.convert("RGB")
    scale = min(1.0, LARGEST_CELL / max(cell.size))
    size = (max(1, round(cell.width * scale)), max(1, round(cell.height * scale)))
    return cell.resize(size, Image.Resampling.LANCZOS) if scale < 1 else cell
