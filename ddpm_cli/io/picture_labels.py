"""Text beside a picture: what its rows and columns are."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddpm_cli.io.images import BETWEEN

TEXT_PIXELS = 16
SMALLEST_TEXT = 7  # pixels: below that nobody reads it
MARGIN = 6  # pixels on either side of a text
LONGEST = 24  # characters of a row's label


def can_be_drawn(text: str) -> bool:
    """Whether Pillow's own font has all of a text's characters."""
    return text.isascii() and text.isprintable() and text.strip() != ""


def fit(texts: Sequence[str], width: float) -> bool:
    """Whether these can be read above columns of so many pixels."""
    return _fitting(texts, width) is not None


def with_labels(picture: Tensor, *, left: Sequence[str] = (), top: Sequence[str] = (), corner: str = "") -> Tensor:
    """A picture with a margin in which its rows, its columns or both are named. Its own pixels stay as they are.

    Columns so narrow that their names could not be read are not named.

    Args:
        picture: uint8 `[C, H, W]`.
        left: beside the rows, from the top; all are of one height.
        top: above the columns; all are of one width.
        corner: left of what is above the columns.

    Returns:
        uint8 `[C, margin + H, margin + W]`; where there is alpha, the margin is opaque.
    """
    channels, height, width = picture.shape
    left = [text if len(text) <= LONGEST else f"{text[: LONGEST - 2]}.." for text in left]
    of_rows = _font(min(TEXT_PIXELS, height // max(len(left), 1) - 2)) if left else None
    of_columns = _fitting(top, width / len(top)) if top else None
    beside = math.ceil(max(of_rows.getlength(text) for text in (*left, corner))) + 2 * MARGIN if of_rows else 0
    above = TEXT_PIXELS + 2 * MARGIN if of_columns else 0
    canvas = Image.new("L", (beside + width, above + height), BETWEEN)
    draw = ImageDraw.Draw(canvas)
    if of_rows is not None:
        for i, text in enumerate(left):
            draw.text((beside - MARGIN, above + (i + 0.5) * height / len(left)), text, 255, of_rows, anchor="rm")
    if of_columns is not None:
        for i, text in enumerate(top):
            draw.text((beside + (i + 0.5) * width / len(top), above / 2), text, 255, of_columns, anchor="mm")
        if of_rows is not None:
            draw.text((beside - MARGIN, above / 2), corner, 255, of_rows, anchor="rm")
    labelled = torch.from_numpy(np.array(canvas)).repeat(channels, 1, 1)
    labelled[3:] = 255
    labelled[:, above:, beside:] = picture
    return labelled


def _fitting(texts: Sequence[str], width: float) -> ImageFont.FreeTypeFont | None:
    """The largest font in which every text is narrower than a column; None: there is none that can be read."""
    for size in range(TEXT_PIXELS, SMALLEST_TEXT - 1, -1):
        font = _font(size)
        if max(map(font.getlength, texts)) + 2 <= width:
            return font
    return None


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(size, SMALLEST_TEXT))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
