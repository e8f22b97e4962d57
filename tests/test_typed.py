"""The command line as people type it: what they mean is taken, and what is printed to be copied runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import TINY, assert_one_message, only, sample, train
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from ddpm_cli import __version__
from ddpm_cli.cli.arguments import read_arguments
from ddpm_cli.cli.path_values import readable
from ddpm_cli.io import run_dir, run_identity
from ddpm_cli.io.command_line import command, override

QUICK = [*TINY, "trainer.steps=2", "trainer.preview_every=0"]
SHELLS = [[found, flag] for name, flag in (("bash", "-c"), ("zsh", "-fc")) if (found := shutil.which(name))]
AWKWARD = "a b [c] 'd' \"e\" =f,g ${h} (i) $j ~ `k` \\ü"
TEXTS = (
    AWKWARD,
    "1",
    "1e5",
    "null",
    "true",
    "inf",
    "~/x",
    "\\",
    "a\\'",
    '\\"',
    "\\${x}",
    "=x",
    "a\n\x1b[2J",
    "%s",
    "!x",
)


def read_by_hydra(argument: str) -> str:
    value = OverridesParser.create().parse_override(argument).value()
    return OmegaConf.create({"key": value}).key


# What is printed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
def test_what_is_printed_comes_through_shell_and_hydra_as_it_was(shell: list[str]):
    line = command("printf", "%s\\0", *(override("key", text) for text in TEXTS), *TEXTS)
    assert line.isprintable()
    said = subprocess.run([*shell, line], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert said[len(TEXTS) :] == list(TEXTS)
    assert [read_by_hydra(argument) for argument in said[: len(TEXTS)]] == list(TEXTS)


def test_plain_words_stay_plain():
    assert command("ddpm-train", override("resume", "outputs/x/2026-11-22_10-00-00")) == (
        "ddpm-train resume=outputs/x/2026-11-22_10-00-00"
    )


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: Path(shell[0]).name)
def test_commands_that_a_run_prints_run_when_they_are_pasted(shell: list[str], tmp_path: Path, trained: tuple):
    """A run in a directory whose name holds what shells and Hydra take for something else."""
    shutil.copytree(trained[0], tmp_path / AWKWARD)
    (tmp_path / "bin").mkdir()
    for program in ("train", "sample", "eval"):
        file = tmp_path / "bin" / f"ddpm-{program}"
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ddpm_cli.{program} "$@" --cfg job --package "$KEY"\n')
        file.chmod(0o755)
    resumed = train(override("resume", AWKWARD), "trainer.steps=5", "trainer.preview_every=0", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    (sampling,) = re.findall(r"^sample   (ddpm-sample .*)$", resumed.stdout, re.MULTILINE)
    (evaluating,) = re.findall(r"^evaluate (ddpm-eval .*)$", resumed.stdout, re.MULTILINE)
    below = sample("ckpt=.", cwd=tmp_path)
    (found,) = re.findall(r"^  (ddpm-sample .*)$", below.stderr, re.MULTILINE)
    for line, key in ((sampling, "ckpt"), (evaluating, "ckpt"), (found, "ckpt")):
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "KEY": key}
        done = subprocess.run([*shell, line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout.removesuffix("\n") == AWKWARD, done.stderr


def test_a_directory_of_runs_names_the_newest(tmp_path: Path):
    for name, begun in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        (tmp_path / "q" / name / run_dir.CHECKPOINTS).mkdir(parents=True)
        run_identity.Identity(begun=begun).write(tmp_path / "q" / name)
    newest = "it holds 3 runs, newest first:\n  ddpm-{} {}=q/a\n  ddpm-{} {}=q/b\n$"
    assert_one_message(sample("ckpt=q", cwd=tmp_path), "sample", newest.format("sample", "ckpt", "sample", "ckpt"))
    for key in ("resume", "fork"):
        done = train(f"{key}=q", cwd=tmp_path)
        assert_one_message(done, "train", newest.format("train", key, "train", key))


# What is typed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.path=~/x", "~/x"),
        ("ckpt=/home/jürgen/a=b", "/home/jürgen/a=b"),
        ("out=a (1)", "a (1)"),
        ("image=o'brien", "o'brien"),
        ("data.path=d/n-{000..127}.tar", "d/n-{000..127}.tar"),
        ("ckpt='~/a,b'", "~/a,b"),
        (r"ckpt=a\=b", "a=b"),
        ("ckpt=plain/one-2.3", "plain/one-2.3"),
    ],
)
def test_a_path_is_read_as_it_is_typed(typed: str, read: str):
    assert read_by_hydra(readable(typed, sweep=False)) == read


@pytest.mark.parametrize("typed", ["ckpt=a,b", "name=~/x", "trust=[a=b]", "ckpt=[a,b]", "ckpt=${oc.env:X,y}"])
def test_what_is_no_path_or_more_than_one_is_left_to_hydra(typed: str):
    assert readable(typed, sweep=False) == typed


def test_a_sweep_goes_over_paths():
    swept = OverridesParser.create().parse_override(readable("ckpt=~/a,b=c,d", sweep=True))
    assert list(swept.sweep_string_iterator()) == ['"~/a"', '"b=c"', "d"]
    assert readable("ckpt=glob(*)", sweep=True) == "ckpt=glob(*)"


def test_flags_stand_anywhere():
    given = read_arguments(["seed=1", "--info", "name=x", "-m", "--cfg", "job", "schedule=linear,cosine"])
    assert given.flags == ["--info=all", "-m", "--cfg", "job"]
    assert given.overrides == ["seed=1", "name=x", "schedule=linear,cosine"]
    assert read_arguments(["--info", "defaults", "a=1"]).flags == ["--info=defaults"]
    assert read_arguments(["a=1", "-i"]).flags == ["-i=all"]


@pytest.mark.parametrize("arguments", [["--version"], ["seed=1", "--version"]])
def test_version_is_ours(arguments: list[str], tmp_path: Path):
    done = train(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ddpm-cli {__version__}\n")


def test_info_is_shown_after_an_override(tmp_path: Path):
    done = train("seed=17", "--info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "seed: 17" in done.stdout


def test_numbers_and_home_are_taken_as_they_are_meant(tmp_path: Path):
    """A text that looks like a number, whole numbers with an exponent, one value for a list, `~`."""
    numbers = ["name=1e5", "trainer.steps=2e0", "trainer.preview_every=0", "ema.decays=0.9"]
    done = train(*TINY, *numbers, "output_dir=~/runs", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "home" / "runs" / "1e5")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["name"], config["trainer"]["steps"], config["ema"]["decays"]) == ("1e5", 2, [0.9])
    again = train(f"resume=~/runs/1e5/{run.name}", "trainer.steps=3e0", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert again.returncode == 0, again.stderr
    drawn = sample(f"ckpt=~/runs/1e5/{run.name}", "out=~/out", "n=1", cwd=tmp_path, HOME=str(tmp_path / "home"))
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "home" / "out" / "samples.png").exists()
    assert not (tmp_path / "~").exists()


def test_a_run_on_a_relative_folder_is_resumed_from_another_directory(tmp_path: Path):
    begun, elsewhere = tmp_path / "begun", tmp_path / "elsewhere"
    for directory in (begun / "pics", elsewhere):
        directory.mkdir(parents=True)
    for i in range(8):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(begun / "pics" / f"{i}.png")
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    data = ["data=folder", "data.path=pics", "data.image_size=16", "model=unet_16", "model.attention_resolutions=8"]
    done = train(*data, *QUICK, cwd=begun, **cache)
    assert done.returncode == 0, done.stderr
    run = only(begun / "outputs" / "pics")
    resumed = train(f"resume={run}", "trainer.steps=3", cwd=elsewhere, **cache)
    assert resumed.returncode == 0, resumed.stderr
    forked = train(f"fork={run}", "trainer.steps=4", cwd=elsewhere, **cache)
    assert forked.returncode == 0, forked.stderr


# Options of one's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (
            "experiment/x.yaml",
            "trainer:\n  steps: 3\n",
            "has to be the first line of .*/experiment/x.yaml: without",
        ),
        ("experiment/x.yaml", "# mine\n# @package _global_\nseed: 1\n", "x.yaml, and stands in line 2"),
        ("data/x.yaml", "data:\n  _target_: mine.x\ntrainer:\n  steps: 3\n", "what the file sets is data.KEY instead"),
        ("probe/x.yml", "trainer:\n  steps: 3\n", "first line of .*mine/probe/x.yml"),
    ],
)
def test_a_file_without_its_package_is_told_exactly_that(file: str, content: str, says: str, tmp_path: Path):
    place = tmp_path / "mine" / file
    place.parent.mkdir(parents=True)
    place.write_text(content)
    group = place.parent.name
    choice = f"+{group}=x" if group == "probe" else f"{group}=x"
    done = train("--config-dir", "mine", choice, cwd=tmp_path)
    assert_one_message(done, "train", f"{group}=x: '# @package _global_' .*{says}")


def test_yml_is_yaml(tmp_path: Path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "x.yml").write_text("# @package _global_\nseed: 17\n")
    shown = train("experiment=x", "--cfg", "job", "--package", "seed", "--config-dir", "mine", cwd=tmp_path)
    assert shown.stdout == "17\n", shown.stderr
    unknown = train("experiment=y", "--config-dir", "mine", cwd=tmp_path)
    assert_one_message(unknown, "train", r"experiment=y: no such option; choose from .*, x\n")
    (folder / "x.yaml").touch()
    refused = train("--config-dir", "mine", cwd=tmp_path)
    assert_one_message(refused, "train", "x.yml: x.yaml beside it would be used instead; rename")


# What is off, and where a run goes ------------------------------------------------------------------------------------


def test_previews_that_are_off_are_not_checked(tmp_path: Path):
    of_ten = [*QUICK, "schedule.timesteps=10", "sampler.steps=50", "trainer.preview_images=0"]
    done = train(*of_ten, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only(tmp_path / "outputs" / "digits")
    more = [f"resume={run}", "trainer.steps=3"]
    on = train(*more, "trainer.preview_every=1", "trainer.preview_images=1", cwd=tmp_path)
    assert_one_message(on, "train", "sampler: steps must be between 1 and the schedule's 10 timesteps, got 50")
    previews = ["sampler=heun", "sampler.steps=2", "trainer.preview_every=1", "trainer.preview_images=1"]
    changed = train(*more, *previews, cwd=tmp_path)
    assert changed.returncode == 0, changed.stderr
    assert OmegaConf.load(run / "config.yaml").sampler.steps == 2
    assert (run / "previews" / "step_00000003.png").exists()


def test_hydra_run_dir_is_the_run_directory(tmp_path: Path):
    named = "hydra.run.dir=runs/${now:%Y}/${hydra.job.override_dirname}"
    excluded = f"hydra.job.config.override_dirname.exclude_keys=[{','.join(o.partition('=')[0] for o in QUICK)}]"
    done = train(*QUICK, "seed=3", "optimizer.lr=1e-4", named, excluded, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only(only(tmp_path / "runs"))
    assert run.name == "optimizer.lr=1e-4,seed=3"
    assert f"ddpm-sample 'ckpt=\"{run.relative_to(tmp_path)}\"'" in done.stdout
    assert not (tmp_path / "outputs").exists()
    exactly = f'hydra.run.dir="{run.relative_to(tmp_path)}"'
    same = [*QUICK, "seed=3", "optimizer.lr=1e-4", exactly]
    assert "has done its 2 steps; trainer.steps=N trains further" in train(*same, cwd=tmp_path).stdout
    further = train(*same, "trainer.steps=3", cwd=tmp_path)
    assert "resumed  at step 2" in further.stdout, further.stderr
    other = train(*QUICK, exactly, cwd=tmp_path)
    assert other.returncode == 2
    assert re.search("hydra.run.dir: .* was trained with another configuration:\n  optimizer.lr: was", other.stderr)
    assert_one_message(train(*same, "resume=null", cwd=tmp_path), "train", "hydra.run.dir: .* holds a run, and resume")


def test_hydra_run_dir_is_made_for_nothing_that_is_refused(tmp_path: Path):
    assert_one_message(train("hydra.run.dir=x/y", "shedule=1", cwd=tmp_path), "train", "shedule: no such option")
    assert_one_message(train("hydra.run.dir=x/y", "seed=a", cwd=tmp_path), "train", "seed: expected a whole number")
    assert list(tmp_path.iterdir()) == []


def test_hydra_run_dir_is_where_pictures_go(tmp_path: Path, trained: tuple):
    drawn = sample(f"ckpt={trained[0]}", "n=1", "hydra.run.dir=x=(1)", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "x=(1)" / "samples.png").exists()
    both = sample(f"ckpt={trained[0]}", "n=1", "hydra.run.dir=x", "out=y", cwd=tmp_path)
    assert_one_message(both, "sample", "hydra.run.dir: out= names the directory already")
