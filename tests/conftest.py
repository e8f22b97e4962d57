"""What several tests share."""

import contextlib
import gc
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from commands import TINY_RUN, begin_server, train
from threadpoolctl import threadpool_limits

from ddpm_cli import eval as eval_command
from ddpm_cli import sample as sample_command
from ddpm_cli.data import decode
from ddpm_cli.runtime.signals import Stop

# The networks and matrices here are tiny: a second thread costs them more than it gives, numpy's too.
torch.set_num_threads(1)
threadpool_limits(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="the tests marked slow too, as with any -m")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Before there are workers, which share it, and while they collect."""
    if getattr(session.config.option, "numprocesses", None) and not hasattr(session.config, "workerinput"):
        begin_server()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all") and not config.getoption("-m"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


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


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    """A finished run of four steps, on digits with their labels. Not to be changed, but for its samples/."""
    place = tmp_path_factory.mktemp("labelled")
    done = train(*TINY_RUN, "data.num_classes=10", cwd=place)
    assert done.returncode == 0, done.stderr
    (directory,) = (place / "outputs" / "digits").iterdir()
    return directory


@pytest.fixture
def sample_here(tmp_path: Path, monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """`ddpm-sample` without a process of its own, in the test's directory: what it says and how it ends."""
    monkeypatch.chdir(tmp_path)
    return partial(_run_here, monkeypatch, "ddpm-sample", sample_command.main)


@pytest.fixture
def eval_here(monkeypatch) -> Callable[..., subprocess.CompletedProcess]:
    """`ddpm-eval` likewise, in the directory that is its first argument."""

    def run(place: Path, *arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.chdir(place)
        return _run_here(monkeypatch, "ddpm-eval", eval_command.main, *arguments)

    return run


def _run_here(
    monkeypatch: pytest.MonkeyPatch, program: str, main: Callable[[], None], *arguments: str
) -> subprocess.CompletedProcess:
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    monkeypatch.setattr(Stop, "listen", lambda self: None)  # signals are for pytest here
    status, out, err = 0, io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        os.environ.pop("HYDRA_FULL_ERROR", None)  # which the command sets
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Grows by the path of every image that is decoded in this process."""
    paths = []
    original = decode.decode

    def recording(path, *more):
        paths.append(path)
        return original(path, *more)

    monkeypatch.setattr(decode, "decode", recording)
    return paths


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported now is here to stay: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
