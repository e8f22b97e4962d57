"""The sheet of a sampling sweep: what stands where, whatever was swept and whichever runs failed."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from ddpm_cli.cli.contact_sheet import LARGEST_CELL, MARGIN, TEXT_PIXELS, contact_sheet
from ddpm_cli.io.images import BETWEEN

SIDE = 200  # pixels: wider than the labels here
TOP = 2 * MARGIN + TEXT_PIXELS


def runs(tmp_path: Path, *keys: tuple[str, list[str]], size: tuple[int, int] = (SIDE, SIDE), mode: str = "L"):
    """Of every combination its overrides and a picture of a brightness of its own, from 200 upwards."""
    found = []
    for i, values in enumerate(product(*(values for _, values in keys))):
        color = 200 + i if mode == "L" else (200 + i, 0, 0)
        Image.new(mode, size, color).save(tmp_path / f"{i}.png")
        overrides = [f"{key}={value}" for (key, _), value in zip(keys, values, strict=True)]
        found.append((overrides, tmp_path / f"{i}.png"))
    return found


def cells(sheet: Image.Image, rows: int, columns: int, width: int = SIDE, height: int = SIDE) -> list[list[int]]:
    """What is in the middle of each cell: the red of a run's picture, or BETWEEN."""
    pixels = np.asarray(sheet)
    left = pixels.shape[1] - columns * (width + MARGIN)
    assert pixels.shape[0] == TOP + rows * (height + MARGIN)
    return [
        [
            int(pixels[TOP + j * (height + MARGIN) + height // 2, left + i * (width + MARGIN) + width // 2, 0])
            for i in range(columns)
        ]
        for j in range(rows)
    ]


def test_rows_are_choices_and_columns_values_of_the_last_option_swept(tmp_path: Path):
    swept = runs(
        tmp_path, ("ckpt", ["x"]), ("sampler", ["ddpm", "ddim", "heun"]), ("sampler.steps", ["2", "3"]), ("n", ["1"])
    )
    sheet = contact_sheet(swept)
    assert sheet is not None
    assert sheet.mode == "RGB"
    assert cells(sheet, 3, 2) == [[200, 201], [202, 203], [204, 205]]


def test_a_sweep_over_one_option_is_one_row(tmp_path: Path):
    sheet = contact_sheet(runs(tmp_path, ("ckpt", ["x"]), ("seed", ["0", "1", "2"])))
    assert sheet is not None
    assert cells(sheet, 1, 3) == [[200, 201, 202]]
    assert sheet.width == MARGIN + 3 * (SIDE + MARGIN), "no room for the names of rows, which have none"


@pytest.mark.parametrize("failed", range(6))
def test_a_run_that_failed_leaves_its_cell_empty_and_the_others_where_they_are(failed: int, tmp_path: Path):
    swept = runs(tmp_path, ("sampler", ["ddpm", "ddim", "heun"]), ("sampler.steps", ["2", "3"]))
    overrides, _ = swept[failed]
    swept[failed] = (overrides, None)
    sheet = contact_sheet(swept)
    assert sheet is not None
    expected = [200 + i if i != failed else BETWEEN for i in range(6)]
    assert cells(sheet, 3, 2) == [expected[:2], expected[2:4], expected[4:]]


def test_there_is_none_where_there_is_nothing_to_compare(tmp_path: Path):
    swept = runs(tmp_path, ("seed", ["0", "1"]))
    assert contact_sheet([]) is None
    assert contact_sheet(swept[:1]) is None
    assert contact_sheet([swept[0], (swept[1][0], None)]) is None
    assert contact_sheet([(overrides, None) for overrides, _ in swept]) is None


def test_names_are_not_cut_off_however_small_the_pictures(tmp_path: Path):
    swept = runs(
        tmp_path, ("threshold", ["static", "dynamic"]), ("guidance.scale", ["1.0", "7.5"]), size=(20, 20), mode="RGB"
    )
    sheet = contact_sheet(swept)
    assert sheet is not None
    font = ImageFont.load_default(TEXT_PIXELS)
    width = max(font.getlength(f"guidance.scale={scale}") for scale in ("1.0", "7.5"))
    assert sheet.width >= font.getlength("threshold=dynamic") + 2 * width
    pixels = np.asarray(sheet)[:, :, 1]
    assert (pixels[:, -MARGIN:] == BETWEEN).all(), "nothing reaches the right edge"
    assert (pixels[-2:] == BETWEEN).all()
    names = (pixels[:TOP] > BETWEEN).any(0).nonzero()[0]
    gap = np.diff(names).max()
    assert gap >= MARGIN, "the names of two columns do not run into each other"


def test_large_pictures_are_made_smaller_and_keep_their_shape(tmp_path: Path):
    sheet = contact_sheet(runs(tmp_path, ("seed", ["0", "1"]), size=(3 * LARGEST_CELL, LARGEST_CELL)))
    assert sheet is not None
    assert cells(sheet, 1, 2, LARGEST_CELL, round(LARGEST_CELL / 3)) == [[200, 201]]


def test_a_value_of_several_lines_is_shown_in_one(tmp_path: Path):
    swept = runs(tmp_path, ("out", ["a\nb", "c"]), ("image", ["d\n", "e"]))
    sheet = contact_sheet(swept)
    assert sheet is not None
    assert cells(sheet, 2, 2) == [[200, 201], [202, 203]]
