"""Parts of one's own, from outside the package: each is a function or a class, and a YAML file in a --config-dir.

Most of them compute what one of ours does, under another name: so must what comes out of them.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, assert_one_message, only, run

SOLVERS = """
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from ddpm_cli.diffusion.samplers import CLEAN, Sampler
from ddpm_cli.diffusion.noise_schedule import expand_t

Direction = Literal["down", "nowhere"]


@dataclass(frozen=True, kw_only=True)
class Euler(Sampler):
    direction: Direction = "down"

    def solve(self, denoise, schedule, times, x, noise):
        for t, s in pairwise([*times, CLEAN]):
            denoised = denoise(x, t)
            alpha, sigma = schedule.alpha_sigma(expand_t(s, x), x.shape)
            x = alpha * denoised.x_0 + sigma * denoised.eps
            yield x
"""
PARTS = """
import math
from dataclasses import dataclass

import numpy as np
import torch
from ddpm_cli import NoiseSchedule
from ddpm_cli.data.image_set import ImageSet
from own_solvers import Direction, Euler


@dataclass(frozen=True, kw_only=True)
class Slow(Euler):
    steps: int = 3


def even(timesteps: int = 1000, *, beta_start: float, beta_end: float) -> NoiseSchedule:
    return NoiseSchedule(torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Capped:
    gamma: float

    def __call__(self, log_snr, log_scale):
        return (log_snr.clamp(max=math.log(self.gamma)) - log_scale).exp()


@dataclass(frozen=True)
class Clipped:
    def __call__(self, x_0):
        return x_0.clamp(-1, 1)


def stripes(*, image_size: int, channels: int) -> ImageSet:
    pixels = np.zeros((9, channels, image_size, image_size), np.uint8)
    pixels[:, :, ::2] = 255
    return ImageSet(pixels, "stripes", flip="none")
"""
CONFIGS = {
    "sampler/slow": "_target_: own_parts.Slow\nsteps: 3\nspacing: linspace\ndirection: down\n",
    "schedule/even": "_target_: own_parts.even\ntimesteps: 1000\nbeta_start: 1.0e-4\nbeta_end: 0.02\n",
    "weighting/capped": "_target_: own_parts.Capped\ngamma: 5.0\n",
    "threshold/clipped": "_target_: own_parts.Clipped\n",
    "data/stripes": "_target_: own_parts.stripes\nimage_size: 16\nchannels: 1\n",
}
OWN = ["--config-dir", "conf"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "own_solvers.py").write_text(SOLVERS)
    (tmp_path / "own_parts.py").write_text(PARTS)
    for option, content in CONFIGS.items():
        (tmp_path / "conf" / option).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{option}.yaml").write_text(content)
    return tmp_path


def command(program: str, *arguments: str, place: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    return run(program, *arguments, cwd=place, PYTHONPATH=path)


def trained(name: str, *arguments: str, place: Path) -> Path:
    done = command("train", *arguments, *TINY_RUN, f"name={name}", place=place)
    assert done.returncode == 0, done.stderr
    return only(place / "outputs" / name)


def sampled(name: str, *arguments: str, place: Path) -> np.ndarray:
    done = command("sample", *arguments, "n=3", "save=npz", f"out={name}", place=place)
    assert done.returncode == 0, done.stderr
    with np.load(place / name / "samples.npz") as archive:
        return archive["arr_0"]


def losses(directory: Path) -> list[float]:
    return [json.loads(line)["loss/mean"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_parts_of_ones_own_compute_what_ours_do(place: Path):
    ours = trained("ours", "schedule=linear", "weighting=min_snr", "sampler=ddim", place=place)
    theirs = trained("theirs", *OWN, "schedule=even", "weighting=capped", "sampler=slow", place=place)
    assert losses(theirs) == losses(ours)
    preview = Path("previews") / "step_00000004.png"
    assert (theirs / preview).read_bytes() == (ours / preview).read_bytes()
    of_ours = sampled("a", f"ckpt={ours}", "sampler=ddim", "sampler.steps=3", place=place)
    trust = "trust=[own_parts.even,own_parts.Capped]"
    own = [*OWN, "sampler=slow", "threshold=clipped"]
    of_theirs = sampled("b", f"ckpt={theirs}", trust, *own, place=place)
    assert np.array_equal(of_ours, of_theirs)
    refused = command("sample", f"ckpt={theirs}", *own, place=place)
    assert_one_message(refused, "sample", r"schedule._target_: own_parts.even is not on the list")


def test_a_data_set_of_ones_own_is_trained_on(place: Path):
    done = command("train", *OWN, "data=stripes", *TINY_RUN, place=place)
    assert done.returncode == 0, done.stderr
    assert "stripes: 9 images, 16 x 16 x 1" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("schedule=evn", r"schedule=evn: no such option \(did you mean 'even'\?\); choose from cosine, custom, even"),
        ("schedule=even schedule.beta_strat=1", r"schedule.beta_strat: no such option \(did you mean 'beta_start'\?\)"),
        ("sampler=slow sampler.eta=0.1", "sampler.eta: no such option; sampler takes steps, spacing, direction"),
        ("sampler=slow sampler.direction=up", "sampler.direction: expected one of down, nowhere, got"),
        (
            "sampler=slow sampler.spacing=random",
            "sampler.spacing: expected one of leading, trailing, linspace, log_snr, optimized",
        ),
        ("sampler=slow sampler.steps=null", "sampler.steps: expected a whole number, got null"),
        ("+sampler=slow", r"\+sampler: already set"),
        ("weighting=capped ~weighting.gamma", "weighting.gamma: missing"),
    ],
)
def test_what_is_wrong_with_them_is_said_as_of_ours(wrong: str, says: str, place: Path):
    """Found in their source, also in what they inherit from another module, without importing any of it."""
    assert_one_message(command("train", *OWN, *wrong.split(), place=place), "train", says)
