"""What several tests share."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import TINY_RUN, train

torch.set_num_threads(1)  # the networks here are tiny: a second thread costs them more than it gives


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def trained(home: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished run of four steps, from a directory that has nothing to do with the project."""
    done = train(*TINY_RUN, cwd=home)
    assert done.returncode == 0, done.stderr
    (directory,) = (home / "outputs" / "digits").iterdir()
    return directory, done
