"""Processes that decode end with their parent and at its will, whatever happens to whom, and when."""

import contextlib
import importlib
import os
import secrets
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
from PIL import Image

from ddpm_cli.data import decode_once, folder
from ddpm_cli.data.worker_pool import WorkerDiedError, WorkerPool

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc which processes there are")

TASKS = """
    import os, signal, time

    def square(number):
        return number * number

    def busy(_number):
        open(f"{os.environ['STARTED']}/{os.getpid()}", "w").close()
        while True:
            sum(range(1000))

    def slow_square(number):
        time.sleep(0.02)
        return number * number

    def die(number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)

    def leave(_number):
        os._exit(7)

    def fail(number):
        raise KeyError(f"number {number}")

    def decode_busily(*_, **__): busy(0)
    def decode_and_die(*_, **__): die(3)
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Functions that processes can import."""
    (tmp_path / "tasks.py").write_text(textwrap.dedent(TASKS))
    (tmp_path / "started").mkdir()
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("tasks", None)
    return importlib.import_module("tasks")


@pytest.fixture
def descendants(monkeypatch) -> Iterator[Callable[[], set[int]]]:
    """The processes that this test has started, directly or not, and that are still there."""
    resource_tracker.ensure_running()  # once for all tests: not one of them
    mark = f"TEST_MARK={secrets.token_hex(8)}"
    monkeypatch.setenv(*mark.split("="))

    def find() -> set[int]:
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.add(int(process.name))
        return found

    yield find
    for left in find():  # by a test that failed
        os.kill(left, signal.SIGKILL)


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.005)


def started(tmp_path: Path) -> int:
    return len(os.listdir(tmp_path / "started"))


def test_every_task_is_done_once(tasks, descendants):
    numbers = [(number,) for number in range(50)]
    with WorkerPool(tasks.square, 3) as pool:
        results = dict(pool.map(numbers))
    assert results == {(number,): number * number for number in range(50)}
    assert descendants() == set()


def test_what_a_function_raises_is_raised(tasks, descendants):
    with pytest.raises(KeyError, match="number 5") as caught, WorkerPool(tasks.fail, 2) as pool:
        list(pool.map([(5,)]))
    assert "in fail" in caught.value.__notes__[0]
    assert descendants() == set()


@pytest.mark.parametrize(("function", "how"), [("die", r"died \(Killed\)"), ("leave", r"ended \(exit status 7\)")])
def test_death_of_a_process_is_reported_with_its_task(tasks, descendants, function, how):
    with pytest.raises(WorkerDiedError, match=how) as caught, WorkerPool(getattr(tasks, function), 2) as pool:
        list(pool.map([(number,) for number in range(3, 100)]))
    assert caught.value.task[0] in (3, 4)
    assert descendants() == set()


class Stopped(BaseException):
    """What a signal's handler raises."""


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Expects that the block is left by an exception that a signal's handler raises in the middle of it.

    Raised in a destructor Python drops it, which no code can help: it is raised again after a while.
    """

    def stop(*_):
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 2)
    try:
        with pytest.raises(Stopped):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("seconds", [0.001, 0.004, 0.01, 0.03, 0.1, 0.3])
def test_an_exception_at_any_moment_ends_the_processes(tasks, descendants, seconds):
    with stopped_after(seconds), WorkerPool(tasks.busy, 3) as pool:
        list(pool.map([(number,) for number in range(100)]))
    wait_until(lambda: not descendants(), seconds=3)


def test_leaving_the_loop_ends_the_processes(tasks, descendants):
    with WorkerPool(tasks.square, 2) as pool:
        with contextlib.closing(pool.map([(number,) for number in range(1000)])) as results:
            next(results)
            assert descendants() != set()
        assert descendants() == set()


def test_processes_are_kept_from_one_lot_of_tasks_to_the_next(tasks, descendants):
    with WorkerPool(tasks.square, 2) as pool:
        assert len(dict(pool.map([(number,) for number in range(10)]))) == 10
        kept = descendants()
        assert len(kept) == 2
        assert dict(pool.map([(7,)])) == {(7,): 49}
        assert descendants() == kept
    assert descendants() == set()


def test_a_pool_of_none_does_the_work_here(tasks, descendants):
    pool = WorkerPool(tasks.square, 0)
    assert list(pool.map([(3,), (2,)])) == [((3,), 9), ((2,), 4)]
    assert descendants() == set()
    with pytest.raises(KeyError, match="number 5"):
        list(WorkerPool(tasks.fail, 0).map([(5,)]))


PARENT = """
    import signal, sys, tasks
    from ddpm_cli.data.worker_pool import WorkerPool
    signals, done = [], sys.argv[2]
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        signal.signal(getattr(signal, name), lambda number, frame: signals.append(number))
    numbers = [(number,) for number in range(20)]
    with WorkerPool(getattr(tasks, sys.argv[1]), 2) as pool:
        results = dict(pool.map(numbers))
    assert results == {(number,): number * number for number in range(20)}, results
    assert len(set(signals)) == 3, signals
    open(done, "w").close()
    sys.stdin.read()
"""


def parent(function: str, tmp_path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(PARENT), function, str(tmp_path / "done")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.parametrize("seconds", [0, 0.02, 0.1, None])
def test_no_process_outlives_a_parent_that_is_killed(tasks, descendants, tmp_path, seconds):
    """Killed `seconds` after its first child was there, or when all are at work."""
    process = parent("busy", tmp_path)
    if seconds is None:
        wait_until(lambda: started(tmp_path) == 2)
    else:
        wait_until(lambda: len(descendants()) > 1)
        time.sleep(seconds)
    process.kill()
    process.wait()
    wait_until(lambda: not descendants(), seconds=5)


def test_signals_to_the_group_are_left_to_the_parent(tasks, descendants, tmp_path):
    """From before the first process is there until all is done."""
    process = parent("slow_square", tmp_path)
    wait_until(lambda: len(descendants()) > 1)
    while process.poll() is None and not (tmp_path / "done").exists():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.killpg(process.pid, number)
        time.sleep(0.005)
    assert (process.communicate()[1], process.returncode) == (b"", 0)
    assert descendants() == set()


@pytest.fixture
def pictures(tmp_path) -> Path:
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(40):
        Image.new("L", (8, 8), index).save(root / f"{index:02}.png")
    return root


def test_death_of_a_decoding_process_is_explained(pictures, tasks, descendants, tmp_path, monkeypatch):
    options = {"cache_dir": str(tmp_path / "cache"), "workers": 2, "image_size": 8, "channels": 1}
    monkeypatch.setattr(decode_once, "FEW_IMAGES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "decode_into", tasks.decode_and_die)
        with pytest.raises(OSError, match=r"died \(Killed\), at one of .* images from .*/pictures/.*data\.workers=0"):
            folder.folder(str(pictures), **options)
    assert descendants() == set()
    assert list((tmp_path / "cache").iterdir()) == []
    assert folder.folder(str(pictures), **options).pixels[:, 0, 0, 0].tolist() == list(range(40))


def test_stopping_in_the_middle_of_decoding_leaves_nothing(pictures, tasks, descendants, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_once, "FEW_IMAGES", 1)
    monkeypatch.setattr(folder, "decode_into", tasks.decode_busily)
    with stopped_after(seconds=0.5):
        folder.folder(str(pictures), cache_dir=str(tmp_path / "cache"), workers=2)
    assert descendants() == set()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_a_parent_killed_while_it_decodes_takes_its_processes_along(pictures, descendants, tmp_path):
    """With nothing put in the place of anything: real pictures, large enough to take some time."""
    large = pictures / "large.png"
    Image.effect_noise((3000, 3000), 50).save(large, compress_level=0)
    for index in range(400):
        os.link(large, pictures / f"more{index}.png")
    code = f"from ddpm_cli.data.folder import folder; folder({str(pictures)!r}, cache_dir={str(tmp_path)!r}, workers=2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: len(descendants()) >= 3)
    time.sleep(0.5)
    process.kill()
    process.wait()
    wait_until(lambda: not descendants(), seconds=5)
