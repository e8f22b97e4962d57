"""What the YAML files' comments say of options: the reader, the help texts, and the page that is made of them."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from ranges import split_range
from reference import COMMANDS, DOCUMENT, named, page

from ddpm_cli.cli.resolvers import HELP_COLUMNS, help_on_groups, help_on_values
from ddpm_cli.config.comments import Option, read_comments
from ddpm_cli.config.shipped import configs_directory, groups, options

FILES = sorted(file for file in configs_directory().glob("*/*.yaml"))
COMMENTED = """\
# @package _global_
# What it is
# in two lines.
defaults:
  - _self_
  - group: option # what it decides
  - other: null

alone: 1 # beside it
below: [1, '#'] # begins here
                # and goes on: here
# about the next one,
# in two lines
next: 'a # b'
"quoted": null # $5
nothing:
group:
  _target_: some.where
  # inside
  inner: 1_000   # beside
                 # below
  last: ???
hydra:
  job: 3
"""


def test_comments_are_read_wherever_they_stand(tmp_path: Path):
    (tmp_path / "x.yaml").write_text(COMMENTED)
    found = read_comments(tmp_path / "x.yaml")
    assert found.meaning == "What it is in two lines."
    assert found.defaults == [Option("group", "option", "what it decides"), Option("other", "null", "")]
    assert found.options == [
        Option("alone", "1", "beside it"),
        Option("below", "[1, '#']", "begins here and goes on: here"),
        Option("next", "'a # b'", "about the next one, in two lines"),
        Option("quoted", "null", "$5"),
        Option("nothing", "", ""),
        Option("group.inner", "1_000", "inside beside below"),
        Option("group.last", "???", ""),
    ]


@pytest.mark.parametrize("program", ["train", "sample", "eval", "import", "export"])
def test_the_help_texts_are_whole_aligned_and_narrow(program: str):
    command = read_comments(configs_directory() / f"{program}.yaml")
    values = [option for option in command.options if option.key not in groups(program)]
    chosen = [group for group in command.defaults if group.key in groups(program)]
    assert [group.key for group in chosen] == list(groups(program))
    for text, shown in ((help_on_groups(program), chosen), (help_on_values(program), values)):
        lines = text.replace("$$", "$").splitlines()
        assert max(map(len, lines)) <= HELP_COLUMNS
        rows = [match for line in lines if (match := re.fullmatch(r"  ([\w.]+)=\S+ +(\S.*)", line))]
        assert [row[1] for row in rows] == [option.key for option in shown]
        assert len({row.start(2) for row in rows}) == 1, "one column"
        words = " ".join(text.split())
        assert all(option.meaning and option.meaning in words for option in shown), "nothing is cut"
    for group in chosen:
        assert ", ".join(options(configs_directory())[group.key]) in " ".join(help_on_groups(program).split())


@pytest.fixture(scope="module")
def generated() -> str:
    return page()


def test_the_page_is_the_one_that_the_files_make(generated: str):
    assert DOCUMENT.read_text(encoding="utf-8") == generated, "scripts/reference makes it again"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trainer.steps", "whole number, at least 1"),
        ("trainer.compile", "`true`, `false`, `auto`, `graphs`"),
        ("trainer.grad_clip", "number above 0, `null`"),
        ("trainer.label_dropout", "number from 0 to 1, `null`"),
        ("trainer.device", "text"),
        ("guidance.interval", "[whole number, whole number], at least 0, `null`"),
        ("ema.decays", "list of numbers, at least 0, below 1"),
        ("model.time_freq_shift", "`0`, `1`"),
        ("preset.num_heads", "whole number from 1 to 1,024, `null`"),
        ("data.background", "`white`, `black`, `keep`, `ignore`, list of whole numbers from 0 to 255"),
        ("data.value_range", "list of numbers, `null`"),
        ("data.split", "text"),
        ("data.holdout", "whole number, at least 0"),
        ("classes", "list of whole numbers or texts, whole number, text, `null`"),
        ("sampler.variance", "option of a group, `null`"),
        ("init.strict", "`true`, `false`"),
        ("save", "`grid`, `images`, `npz`"),
    ],
)
def test_the_page_says_what_a_key_takes(key: str, values: str, generated: str):
    (row,) = {line.split(" | ")[-2] for line in generated.splitlines() if line.startswith(f"| `{key}` |")}
    assert row == values


def test_the_page_gives_each_option_the_types_of_its_own(generated: str):
    rows = [line.split(" | ") for line in generated.splitlines() if line.startswith("| `sampler.steps` |")]
    assert [row[3].endswith("`null`") for row in rows] == [row[1] == "`ddpm`" for row in rows]


def test_no_cell_of_the_page_ends_early(generated: str):
    for first, second in pairwise(generated.splitlines()):
        if first.startswith("| ") and second.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", first)) == len(re.findall(r"(?<!\\)\|", second)), second


def test_every_option_and_every_key_says_what_it_is():
    assert [str(file) for file in FILES if not read_comments(file).meaning] == []
    own = [(file, f"{file.parent.name}.") for file in FILES if file.parent.name not in ("debug", "experiment")]
    own += [(configs_directory() / f"{command}.yaml", "") for command in COMMANDS]
    keys = [option for file, group in own for option in named(file).options if option.key.startswith(group)]
    assert [option.key for option in keys if not split_range(option.meaning)[0]] == []


@pytest.mark.parametrize(
    ("comment", "meaning", "inside", "outside"),
    [
        ("images (at least 1), and more", "images, and more", [1, 2], [0, -1]),
        ("share (above 0, at most 1); 1: all", "share; 1: all", [0.1, 1], [0, 1.1]),
        ("share (at least 0, below 0.25)", "share", [0, 0.2], [-0.1, 0.25]),
        ("(from -1 to 1,024)", "", [-1, 0, 1024], [-2, 1025]),
        ("colour (only 1, 3 or 4)", "colour", [1, 3, 4], [0, 2, 5]),
        ("labels (only 10)", "labels", [10], [9, 11]),
    ],
)
def test_a_range_is_read(comment: str, meaning: str, inside: list, outside: list):
    rest, limits = split_range(comment)
    assert rest == meaning
    assert limits is not None
    assert all(value in limits for value in inside)
    assert not any(value in limits for value in outside)


def test_what_is_no_range_is_left_and_two_are_refused():
    assert split_range("a (b), (at first 3), 2 (of 4)") == ("a (b), (at first 3), 2 (of 4)", None)
    with pytest.raises(ValueError, match="more than one range"):
        split_range("x (at least 1), y (above 2)")
