"""YAML of the user's own and command lines that would take more than their size: one message, at once."""

import os
import resource
from pathlib import Path

import pytest
from commands import assert_one_message, sample, train
from omegaconf import OmegaConf

from ddpm_cli.cli.arguments import read_arguments
from ddpm_cli.cli.own_yaml import MOST_VALUES, check_yaml
from ddpm_cli.cli.references import check_references
from ddpm_cli.config.errors import ConfigError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)
REFUSED = {
    "aliases of aliases": (BOMB, "holds more than 10,000 values, with those that aliases repeat"),
    "a merged alias": ("a: &a [x, x]\nb: {<<: [" + ", ".join(["*a"] * 5000) + "]}\n", "holds more than 10,000"),
    "an alias of itself": ("a: &a [*a]\n", r"\*a stands for nothing that is complete"),
    "an alias of nothing": ("a: *b\n", "stands for nothing"),
    "30,000 values": (f"betas: [{', '.join(['0.1'] * 30_000)}]\n", "holds more than 10,000 values"),
    "2,000 references": ("a: " + "${b}" * 2000, "holds more than 10,000 values"),
    "nested deep": ("a: " + "[" * 40 + "]" * 40, "nested too deep"),
    "nested deeper": ("[" * 100_000, "no valid YAML in .*nesting"),
    "half of a list": ("a: [1,\n", "no valid YAML in .* at line 2"),
    "a name of 10,000 letters": (f"a: *{'b' * 10_000}\n", "stands for nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_yaml_that_grows_is_refused_by_file_before_it_is_built(name: str, tmp_path: Path):
    content, says = REFUSED[name]
    file = tmp_path / "own.yaml"
    file.write_text(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=says) as refused:
        check_yaml(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14  # kB
    assert str(file) in str(refused.value)
    assert len(str(refused.value)) < 500 + len(str(file))


def test_what_is_no_text_file_is_refused(tmp_path: Path):
    file = tmp_path / "own.yaml"
    file.write_bytes(b"a: \xe4\n")
    with pytest.raises(ConfigError, match="is not UTF-8: invalid continuation byte at byte 3"):
        check_yaml(file)
    os.truncate(file, 2**30)
    with pytest.raises(ConfigError, match="has 1,073,741,824 bytes"):
        check_yaml(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="is not a plain file"):
        check_yaml(file)


def test_as_many_values_as_a_schedule_may_have_are_read(tmp_path: Path):
    file = tmp_path / "own.yaml"
    file.write_text(f"a: &a [{', '.join(['0.1'] * 8192)}]\nb: &b {{c: 1}}\nd: [*b, *b]\n")
    check_yaml(file)
    file.write_text(f"a: &a [{', '.join(['x'] * (MOST_VALUES // 2))}]\nb: [*a]\n")
    with pytest.raises(ConfigError, match="with those that aliases repeat"):
        check_yaml(file)


LINES = {
    "30,000 values": (
        [f"schedule.betas=[{','.join(['0.1'] * 30_000)}]"],
        "schedule.betas: .* put long lists into a YAML",
    ),
    "values in many arguments": ([f"+a{i}=[{','.join(['0.1'] * 900)}]" for i in range(3)], "too many values for a"),
    "30,000 arguments": ([f"x{i}=1" for i in range(30_000)], "too many values for a command line"),
    "300 references": (["name=" + "${seed}" * 300], "name: too many values"),
    "a long text": ([f"name='{'x' * 100_000}'"], "name: 100,007 characters, at most 65,536"),
    "lists in lists": (["seed=" + "[" * 3000], "nested too deep"),
    "not UTF-8": (["data.path='\udcff'"], r"cannot read 'data.path=.* is not UTF-8"),
    "a folder that is not UTF-8": (["--config-dir", "\udcff"], "is not UTF-8"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_command_line_that_takes_minutes_or_is_no_text_is_refused(name: str):
    arguments, says = LINES[name]
    with pytest.raises(ConfigError, match=says) as refused:
        read_arguments(arguments)
    assert len(str(refused.value)) < 500


def test_a_command_line_of_a_thousand_values_is_read():
    (override,) = read_arguments([f"schedule.betas=[{','.join(['0.1'] * 1000)}]"]).overrides
    assert override.count(",") == 999


def test_the_commands_say_one_message_and_make_nothing(tmp_path: Path):
    group = tmp_path / "own" / "schedule"
    group.mkdir(parents=True)
    (group / "bomb.yaml").write_text(BOMB)
    os.mkfifo(group / "pipe.yaml")
    before = sorted(tmp_path.rglob("*"))
    done = train("--config-dir", "own", "schedule=bomb", cwd=tmp_path)
    assert_one_message(done, "train", "own/schedule/bomb.yaml: holds more than 10,000 values")
    assert_one_message(train("--config-dir", "own", "schedule=pipe", cwd=tmp_path), "train", "schedule=pipe: no such")
    assert_one_message(sample("ckpt='\udcff'", cwd=tmp_path), "sample", r"ckpt='\\xff'': it is not UTF-8")
    assert sorted(tmp_path.rglob("*")) == before


NO_MEMORY = """
import sys
from ddpm_cli.training import start
def fail(*_): raise MemoryError
start.build_training = fail
from ddpm_cli.train import main
main()
"""


def doubled(refer: str, *, backwards: bool = False, times: int = 30) -> dict:
    """Values of which each is the one before it, twice; `refer` has its number for #."""
    values = {"b0": "x", **{f"b{i + 1}": refer.replace("#", str(i)) for i in range(times)}}
    return dict(reversed(values.items())) if backwards else values


@pytest.mark.parametrize(
    "config",
    [
        doubled("${b#}${b#}"),
        doubled("${b#}${b#}", backwards=True),
        doubled("${oc.select:b#}, ${oc.select:b#}"),
        doubled("${${n#}}${${n#}}") | {f"n{i}": f"b{i}" for i in range(30)},
        {"a": doubled("${.b#}${.b#}")},
        {"a": "${b}", "b": doubled("${a.b#}${a.b#}")},
        {"a": {"b0": "x"} | {f"b{i}": [f"${{a.b{i - 1}}}", {"c": f"${{a.b{i - 1}}}"}] for i in range(1, 30)}},
    ],
)
def test_references_that_stand_for_more_than_there_is_memory_are_refused(config: dict):
    with pytest.raises(ConfigError, match=r"^\w+: what it refers to has more than 1,048,576 characters and values"):
        check_references(OmegaConf.create(config))


def test_references_as_people_write_them_are_followed():
    config = {
        "a": "${b.c}-${oc.env:HOME}/${.d}",
        "b": {"c": "${.e}_${seed}", "e": "${now:%Y}"},
        "d": "${${f}}",
        "f": "seed",
    }
    check_references(OmegaConf.create(config | {"seed": 3, "betas": [0.1] * 8192, "again": ["${betas}"] * 20}))
    check_references(OmegaConf.create(doubled("${b#}${b#}", times=15)))
    check_references(OmegaConf.create({"a": "${b}", "b": "${a}"}))  # which OmegaConf refuses
    with pytest.raises(ConfigError, match="values refer to each other, one to the next, too often"):
        check_references(OmegaConf.create(doubled("${b#}", backwards=True, times=2000)))


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["a run", "a sweep"])
def test_a_name_that_stands_for_a_billion_letters_is_one_message(sweep: list[str], tmp_path: Path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    values = doubled("${model.b#}${model.b#}") | {"name": "${model.b30}"}
    text = "".join(f"{key}: {value}\n" for key, value in values.items()).replace("name:", "name_of_it:")
    (tmp_path / "own/experiment/bomb.yaml").write_text(f"# @package model\n{text}")
    done = train(*sweep, "--config-dir=own", "experiment=bomb", "name=${model.name_of_it}", cwd=tmp_path)
    assert done.returncode == 2
    assert_one_message(
        done, "train", "(name|model|hydra): what it refers to has more than 1,048,576 characters and values"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_lack_of_memory_is_one_message_and_no_mistake(tmp_path: Path):
    done = train(cwd=tmp_path, code=NO_MEMORY)
    assert done.stderr == "ddpm-train: out of memory: the machine has no more, or this process has reached its limit\n"
    assert done.returncode == 1
