"""What several tests share."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY_RUN, train

from ddpm_cli.data import decode

torch.set_num_threads(1)  # the networks here are tiny: a second thread costs them more than it gives


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run of four steps, from a directory that has nothing to do with the project. Not to be changed: see `home`."""
    place = tmp_path_factory.mktemp("finished")
    done = train(*TINY_RUN, cwd=place)
    assert done.returncode == 0, done.stderr
    return place, done


@pytest.fixture
def home(finished, tmp_path: Path) -> Path:
    """A directory of the test's own in which the finished run lies."""
    return shutil.copytree(finished[0], tmp_path / "home")


@pytest.fixture
def trained(finished, home: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """The finished run in `home`, and what the command said."""
    (directory,) = (home / "outputs" / "digits").iterdir()
    return directory, finished[1]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Grows by the path of every image that is decoded in this process."""
    paths = []
    original = decode.decode

    def recording(path, size, channels):
        paths.append(path)
        return original(path, size, channels)

    monkeypatch.setattr(decode, "decode", recording)
    return paths
