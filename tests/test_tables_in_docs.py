"""Tables that scripts write into docs/, and the pictures that are drawn of them."""

from pathlib import Path

import pytest
import tables_in_docs
from numerics import calls_picture
from PIL import Image
from quality import plot

SOLVERS = [
    "One network. Frechet distance; 1000 ancestral steps (ddpm): **3.69**.",
    "",
    "| solver | 5 calls | 10 calls | calls to 6.28 |",
    "| --- | --- | --- | --- |",
    "| ddim | 31.81 | 8.95 | 15 |",
    "| unipc | 5.44 | 3.47 | more than 10 |",
]
FEW = [
    "| solver | 5 calls | 5 calls, optimized |",
    "| --- | --- | --- |",
    "| ddim | 23.20 ± 3.78 (trailing) | 23.31 ± 3.87 |",
    "| unipc | 6.80 ± 2.01 (trailing) | 4.45 ± 2.13 |",
]


def test_what_is_written_is_read_and_nothing_else_changes(tmp_path: Path):
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- make a writes from here -->\nold\n<!-- to here: a -->\nafter\n")
    assert tables_in_docs.read(document, "make a", "a") == ["old"]
    for lines in (["| new |", "", "| lines |"], []):
        tables_in_docs.write(document, "make a", "a", lines)
        assert tables_in_docs.read(document, "make a", "a") == lines
        assert document.read_text().startswith("before\n<!-- make a writes from here -->\n")
        assert document.read_text().endswith("<!-- to here: a -->\nafter\n")
    with pytest.raises(SystemExit, match=r"page\.md has no place for b"):
        tables_in_docs.read(document, "make b", "b")


def test_the_picture_of_calls_shows_what_the_tables_say(tmp_path: Path):
    many, fixed = calls_picture.curves(SOLVERS), calls_picture.curves(FEW)
    optimized = calls_picture.curves(FEW, optimized=True)
    assert calls_picture.goal(SOLVERS) == 3.69
    assert many == {"ddim": ([5, 10], [31.81, 8.95]), "unipc": ([5, 10], [5.44, 3.47])}
    assert fixed == {"ddim": ([5], [23.2]), "unipc": ([5], [6.8])}
    assert optimized == {"ddim": ([5], [23.31]), "unipc": ([5], [4.45])}
    calls_picture.save(tmp_path / "calls.png", 3.69, many, fixed, optimized)
    assert Image.open(tmp_path / "calls.png").size == (1200, 480)


def test_scales_are_drawn_side_by_side(tmp_path: Path):
    plot.save_scales(
        tmp_path / "scales.png", [1, 2], {"distance": [[0.5, 0.7], [0.4, 0.8]], "recall": [[1, 1], [0, 1]]}
    )
    assert Image.open(tmp_path / "scales.png").size == (1200, 420)
