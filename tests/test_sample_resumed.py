"""Many images: drawn without the memory for all of them, stopped in every way, and gone on with to the same bytes."""

import errno
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from commands import Process, assert_one_message, sample, start, wait_for

from ddpm_cli.runtime.seeds import IMAGE_NOISE
from ddpm_cli.sampling.image_store import ImageStore

MANY = ["n=805", "batch_size=10", "save=npz", "save_trajectory=true", "sampler=ddim", "sampler.steps=8"]


def begin(*arguments: str, cwd: Path) -> Process:
    return start("sample", *arguments, cwd=cwd, PYTHONUNBUFFERED="1")


def batches_done(out: Path) -> int:
    try:
        return sum((out / ".unfinished" / "done").read_bytes())
    except FileNotFoundError:
        return 0


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def whole(labelled: Path, tmp_path_factory) -> dict[str, bytes]:
    """What a run makes that nobody stops."""
    place = tmp_path_factory.mktemp("whole")
    done = sample(f"ckpt={labelled}", *MANY, "out=out", cwd=place)
    assert done.returncode == 0, done.stderr
    return contents(place / "out")


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes(labelled: Path, whole, tmp_path: Path):
    chance, out = random.Random(0), tmp_path / "out"
    arguments = [f"ckpt={labelled}", *MANY, "out=out"]
    for kept_before in (False, True):
        process = begin(*arguments, cwd=tmp_path)
        if kept_before:  # how long the rest takes is up to the machine
            while not process.stdout.readline().startswith("resumes: "):
                assert process.poll() is None, process.communicate()
        else:
            wait_for(lambda: batches_done(out) > 0, process)
        time.sleep(0.2 * chance.random())
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
    done = sample(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert re.search(r"^resumes: [\d,]+ of 805 images are there$", said, re.MULTILINE)
    assert contents(out) == whole
    assert sorted(whole) == ["config.yaml", "samples.json", "samples.npz", "samples.png", "steps.gif", "steps.png"]


@pytest.mark.slow
def test_asked_to_stop_it_says_what_is_there_and_the_command_that_goes_on(labelled: Path, whole, tmp_path: Path):
    """Without `out`, too: the place has been made for this run, and the command names it."""
    process = begin(f"ckpt={labelled}", *MANY, cwd=tmp_path)
    earlier = set((labelled / "samples").glob("*"))
    wait_for(lambda: any(batches_done(out) for out in set((labelled / "samples").glob("*")) - earlier), process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75, error
    message = error.strip().splitlines()[-1]
    says = r"ddpm-sample: SIGINT: stopped. ([\d,]+) of 805 images are there. To resume: (ddpm-sample .*)"
    found = re.fullmatch(says, message)
    assert found is not None, message
    assert "Traceback" not in error
    _, *arguments = shlex.split(found[2])
    assert arguments[:-1] == [f"ckpt={labelled}", *MANY]
    out = Path(arguments[-1].removeprefix("out="))
    assert 10 * batches_done(out) == int(found[1].replace(",", "")), "all that was finished is kept"
    done = sample(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"resumes: {found[1]} of 805 images are there" in done.stdout
    assert contents(out) == whole


def test_a_signal_before_anything_is_drawn_leaves_nothing(labelled: Path, tmp_path: Path):
    process = begin(f"ckpt={labelled}", "n=1000", "batch_size=1000", "out=out", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().endswith("on cpu, fp32\n"), "the last it says before the first step"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.splitlines()[-1] == "ddpm-sample: SIGTERM: stopped. Nothing had been drawn yet"
    assert list(tmp_path.iterdir()) == []


DISTURBED = """
import os, signal, sys
from ddpm_cli.sampling import outputs
from ddpm_cli.sampling.image_store import ImageStore
names = [sys.argv.pop(1), sys.argv.pop(1)]
def disturb(): os.kill(os.getpid(), getattr(signal, names.pop(0)))
write, end = outputs.write, ImageStore.end
def disturbed(*a, **k): disturb(); return write(*a, **k)
def and_then(self): end(self); disturb(); os.close(1)
outputs.write, ImageStore.end = disturbed, and_then
from ddpm_cli.sample import main; main()
"""


@pytest.mark.parametrize("names", [("SIGINT", "SIGTERM"), ("SIGHUP", "SIGHUP")])
def test_once_all_is_drawn_nothing_makes_it_a_failure(names, labelled: Path, sample_here, tmp_path: Path):
    """Signals while the pictures are made and after that, and a console that is gone; given again, it says so."""
    few = [f"ckpt={labelled}", "n=3", "sampler=ddim", "sampler.steps=2", "out=out"]
    disturbed = sample(*names, *few, "save=images", code=DISTURBED, cwd=tmp_path)
    assert disturbed.returncode == 0, disturbed.stderr
    assert disturbed.stderr.startswith(f"\n{names[0]}: finishing the pictures")
    before = contents_below(tmp_path / "out")
    for save in ("images", "grid"):
        again = sample_here(*few, f"save={save}")
        assert (again.returncode, again.stderr) == (0, "")
        assert again.stdout.splitlines() == ["out holds these images already:", "out/samples.png", "out/images"]
    assert_one_message(sample_here(*few, "save=npz"), "sample", "out: out has finished without samples.npz; choose")
    other = sample_here(*few, "seed=1")
    assert_one_message(
        other, "sample", "out: out holds finished images of another configuration:\n  seed: was 0, now 1"
    )
    assert contents_below(tmp_path / "out") == before


def test_killed_at_its_end_it_is_finished_by_the_same_command(labelled: Path, sample_here, tmp_path: Path, monkeypatch):
    few = [f"ckpt={labelled}", "n=3", "sampler=ddim", "sampler.steps=2"]
    assert sample_here(*few, "out=whole").returncode == 0
    rename = os.rename
    for number in range(3):  # before config.yaml and the picture have their places, and before the run has finished
        places = iter(range(9))

        def killed(source: Path, target: Path, places=places, number=number) -> None:
            if next(places) == number:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "rename", killed)
        assert sample_here(*few, f"out=out{number}").returncode == 130
        monkeypatch.setattr(os, "rename", rename)
        done = sample_here(*few, f"out=out{number}")
        assert (done.returncode, done.stderr) == (0, "")
        assert "resumes: 3 of 3 images are there" in done.stdout
        assert contents(tmp_path / f"out{number}") == contents(tmp_path / "whole")


@pytest.fixture
def stopped(labelled: Path, tmp_path: Path) -> Path:
    """The output directory of a run that was stopped in the middle."""
    process = begin(f"ckpt={labelled}", *MANY, "out=out", cwd=tmp_path)
    wait_for(lambda: batches_done(tmp_path / "out") > 0, process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75
    return tmp_path / "out"


@pytest.mark.slow
def test_another_configuration_does_not_go_on(stopped: Path, labelled: Path, trained, sample_here):
    before = contents_below(stopped)
    same = [f"ckpt={labelled}", *MANY, f"out={stopped}"]
    for change, says in {
        "seed=1": "seed: was 0, now 1",
        "n=806": "n: was 805, now 806",
        "batch_size=20": "batch_size: was 10, now 20",
        "sampler.steps=9": "sampler.steps: was 8, now 9",
        "save_trajectory=false": "save_trajectory: was True, now False",
        "classes=[3]": r"classes: was None, now \[3\]",
        "weights=model": "ckpt: was 'step 4, [0-9a-f]{16}', now 'step 4, [0-9a-f]{16}'",
        f"ckpt={trained[0]}": "ckpt: was 'step 4, ",
        "precision=bf16": "precision: was 'fp32', now 'bf16'",
        "compile=true": "compile: was False, now True",
    }.items():
        done = sample_here(*same, change)
        assert done.returncode == 2, done.stderr
        message = (
            rf"^ddpm-sample: out: .* holds unfinished images of another configuration:\n  {says}.*\n  choose another"
        )
        assert re.search(message, done.stderr), done.stderr
        assert done.stdout == ""
    assert contents_below(stopped) == before
    # What does not decide the images may change: here where they come from by name, and what is made of them.
    (newest,) = (labelled / "checkpoints").glob("step_00000004")
    done = sample_here(f"ckpt={newest}", *MANY, "save=images", f"out={stopped}")
    assert done.returncode == 0, done.stderr
    assert len(list((stopped / "images").iterdir())) == 805


def contents_below(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_do_not_draw_in_one_directory(labelled: Path, whole, tmp_path: Path):
    arguments = [f"ckpt={labelled}", *MANY, "out=out"]
    process = begin(*arguments, cwd=tmp_path)
    wait_for(lambda: batches_done(tmp_path / "out") > 0, process)
    process.send_signal(signal.SIGSTOP)
    assert_one_message(sample(*arguments, cwd=tmp_path), "sample", "out: out: another process is drawing there")
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) == 0
    process.communicate()
    assert contents(tmp_path / "out") == whole


@contextmanager
def disk_that_is_full_after_four_images() -> Iterator[None]:
    keep = ImageStore.keep

    def until_full(self: ImageStore, indices: range, *parts) -> None:
        if indices.start == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / "pixels"))
        keep(self, indices, *parts)

    with mock.patch.object(ImageStore, "keep", until_full):
        yield


def test_a_full_disk_ends_a_run_that_goes_on_later(labelled: Path, sample_here, tmp_path: Path):
    arguments = [f"ckpt={labelled}", "n=7", "batch_size=2", "sampler.steps=2", "save=npz", "save_trajectory=true"]
    assert sample_here(*arguments, "out=whole").returncode == 0
    with disk_that_is_full_after_four_images():
        done = sample_here(*arguments, "out=out")
    assert done.returncode == 1
    says = "ddpm-sample: out/.unfinished/pixels: No space left on device. 4 of 7 images are there. To resume: "
    assert done.stderr == says + shlex.join(["ddpm-sample", *arguments, "out=out"]) + "\n"
    done = sample_here(*arguments, "out=out")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_images_of_an_earlier_noise_are_not_gone_on_with(labelled: Path, sample_here, tmp_path: Path):
    arguments = [f"ckpt={labelled}", "n=7", "batch_size=2", "sampler.steps=2", "out=out"]
    with disk_that_is_full_after_four_images():
        assert sample_here(*arguments).returncode == 1
    kept = tmp_path / "out" / ".unfinished" / "identity.json"
    identity = json.loads(kept.read_text())
    assert identity.pop("noise") == IMAGE_NOISE
    kept.write_text(json.dumps(identity))  # as it was while every image had a generator of its own
    before = contents_below(tmp_path / "out")
    says = f"another configuration:\n  noise: was absent, now '{IMAGE_NOISE}'\n  choose another directory"
    assert_one_message(sample_here(*arguments), "sample", says)
    assert contents_below(tmp_path / "out") == before


# A process that draws and writes down so many images of 12 kB, and then so many, with the exact denoiser of Gaussian
# data for a network; after each it says how much memory it has had at most.
DRAWING = """
import resource, sys
from pathlib import Path
import torch
from gaussian import GaussianDenoiser
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import DDIM
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, SampleContext
from ddpm_cli.sampling.outputs import write
from ddpm_cli.sampling.image_store import ImageStore, begin, locked

torch.set_num_threads(1)
shape, schedule, sampler = (3, 64, 64), linear(100), DDIM(steps=1)
for n in map(int, sys.argv[1:]):
    plan = Generate().plan(SampleContext(schedule, sampler, shape, n=n, classes=0, seed=0, device=torch.device("cpu")))
    ddpm = DDPM(GaussianDenoiser(schedule, mean=0.1, std=0.4), schedule)
    directory, layout = Path(str(n)), {"batch_size": 50, "shape": (n, 64, 64, 3)}
    directory.mkdir()
    with locked(directory):
        begin(directory, {}, **layout)
        with ImageStore(directory, **layout) as store:
            SamplingLoop(ddpm, plan, choose_compute("cpu")).draw(store.missing, store.keep)
            write(store, plan, save="npz", drawn_by="")
            store.end()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_more_images_take_no_more_memory(tmp_path: Path):
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", DRAWING, "500", "3500"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for n in (500, 3500):
        assert (tmp_path / str(n) / "samples.npz").stat().st_size > 3 * 64 * 64 * n
    few, many = map(int, done.stdout.split())
    assert many < few + 10, "of the 37 MB that 3000 more images are"
