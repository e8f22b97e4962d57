"""What the YAML files' comments say of options: the reader, the help texts, and the page that is made of them."""

import re
from pathlib import Path

import pytest
from reference import DOCUMENT, page

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


def test_the_page_is_the_one_that_the_files_make():
    assert DOCUMENT.read_text(encoding="utf-8") == page(), "scripts/reference makes it again"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("trainer.steps", "whole number"),
        ("trainer.compile", "`true`, `false`, `auto`, `graphs`"),
        ("trainer.grad_clip", "number, `null`"),
        ("guidance.interval", "[whole number, whole number], `null`"),
        ("ema.decays", "list of numbers"),
        ("data.holdout", "whole number"),
        ("init.strict", "`true`, `false`"),
        ("save", "`grid`, `images`, `npz`"),
    ],
)
def test_the_page_says_what_a_key_takes(key: str, values: str):
    (row,) = {line.split(" | ")[-2] for line in page().splitlines() if line.startswith(f"| `{key}` |")}
    assert row == values


def test_every_option_says_what_it_is():
    assert [str(file) for file in FILES if not read_comments(file).meaning] == []
