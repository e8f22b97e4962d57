"""Text beside pictures: where it stands, that it can be read, and that the picture stays what it is."""

import pytest
import torch
from torch import Tensor

from ddpm_cli.io.images import BETWEEN
from ddpm_cli.io.picture_labels import LONGEST, with_labels


def blank(channels: int, height: int, width: int) -> Tensor:
    return torch.full((channels, height, width), 7, dtype=torch.uint8)


def written(margin: Tensor) -> Tensor:
    """Where in a margin `[C, H, W]` there is text."""
    return margin[0] != BETWEEN


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_text_stands_beside_its_row_and_above_its_column(channels: int):
    picture = torch.randint(0, 256, (channels, 3 * 66 + 2, 2 * 66 + 2), dtype=torch.uint8)
    labelled = with_labels(picture, left=["0", "", "cat"], top=["999", ""], corner="t")
    above, beside = labelled.shape[1] - 200, labelled.shape[2] - 134
    assert torch.equal(labelled[:, above:, beside:], picture)
    left = written(labelled[:, above:, :beside])
    rows = [bool(left[i * 66 : (i + 1) * 66].any()) for i in range(3)]
    assert rows == [True, False, True]
    top = written(labelled[:, :above, beside:])
    assert (bool(top[:, :67].any()), bool(top[:, 67:].any())) == (True, False)
    assert written(labelled[:, :above, :beside]).any()
    lines = left[:66].any(1).nonzero().flatten()
    assert 8 <= len(lines) <= 16, "as high as text that is read"
    assert abs(float(lines.float().mean()) - 33) <= 2, "in the middle of its row"
    assert labelled[0, :, :beside].max() == 255
    if channels == 4:
        assert (labelled[3, :above] == 255).all()


def test_without_texts_it_is_the_picture():
    assert torch.equal(with_labels(blank(3, 5, 4)), blank(3, 5, 4))


def test_columns_too_narrow_for_their_texts_have_none_and_narrow_ones_small_ones():
    wide, narrow, too_narrow = (
        with_labels(blank(1, 66, 10 * width), left=["x"], top=["999"] * 10) for width in (66, 20, 6)
    )
    assert too_narrow.shape[1] == 66
    assert narrow.shape[1] == wide.shape[1]
    heights = [written(picture[:, : wide.shape[1] - 66]).any(1).sum() for picture in (wide, narrow)]
    assert heights[0] > heights[1] > 4
    columns = written(narrow[:, : narrow.shape[1] - 66, -200:]).any(0).reshape(10, 20)
    assert columns.any(1).all()
    assert not columns[:, 0].any(), "and do not touch"


def test_a_long_name_is_cut_and_low_rows_have_low_letters():
    long = with_labels(blank(1, 66, 66), left=["m" * 1000])
    assert long.shape[2] == with_labels(blank(1, 66, 66), left=["m" * (LONGEST - 2) + ".."]).shape[2] < 500
    low = with_labels(blank(1, 40, 66), left=["M"] * 4)
    text = written(low[:, :, : low.shape[2] - 66]).any(1)
    assert [bool(text[10 * i : 10 * i + 10].any()) for i in range(4)] == [True] * 4
    assert not text[::10].any(), "and do not touch"
