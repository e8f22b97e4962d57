"""Sweeps whose runs are in other processes, by Hydra's launchers, and how they end there."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import stand_in
from commands import TINY, TINY_RUN, Process, only, run, sample, start, wait_for

JOBLIB = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
SUBMITIT = ["-m", "hydra/launcher=submitit_local", "hydra.sweep.dir=sweep"]
# Steps until a test has seen what it waits for.
ENDLESS = [*TINY, "trainer.steps=1000000", "trainer.preview_every=0", "trainer.checkpoint_every=0"]


def result(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))


def table(done: subprocess.CompletedProcess) -> list[str]:
    lines = done.stdout[done.stdout.index("sweep in") :].splitlines()[1:]
    return [line for line in lines if not line.startswith("  compare  ")]


@pytest.fixture(params=[stand_in.MAIN, pytest.param(None, marks=pytest.mark.slow)], ids=["stand-in", "ddpm-train"])
def begin(request, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts `ddpm-train`, or its stand-in, in a process group of its own, of which nothing is left in the end."""
    begun: list[Process] = []
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

    def begin(*arguments: str, **environment: str) -> Process:
        options = {"cwd": tmp_path, "code": request.param, "PYTHONPATH": path}
        begun.append(start("train", *arguments, **options, **environment))
        return begun[-1]

    yield begin
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# For what depends on how many seconds a step takes, or on what its loss is.
as_stand_in = pytest.mark.parametrize("begin", [stand_in.MAIN], indirect=True, ids=["stand-in"])


def finish(process: Process) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=90)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def trains(directory: Path) -> bool:
    file = directory / "train.log"
    return file.exists() and "step 2/" in file.read_text(encoding="utf-8")


def children(pid: int, name: str = "") -> list[int]:
    """Of a process, those in whose command line `name` is."""
    listed = subprocess.run(["ps", "-Aww", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [int(child) for child, parent, *command in lines if int(parent) == pid and name in "".join(command)]


@pytest.mark.slow
def test_joblib_runs_a_sweep_each_on_a_gpu_of_its_own(begin, tmp_path: Path):
    (tmp_path / "tmp").mkdir()
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1", "TMPDIR": str(tmp_path / "tmp")}
    done = finish(begin(*TINY_RUN, *JOBLIB, "model.dropout=0.1,7,0.2", **gpus))
    assert done.returncode == 1, done.stderr
    lines = table(done)
    assert re.search(r"^  0  .*dropout=0.1  loss \d", lines[0])
    assert re.search(r"^  1  .*dropout=7    FAILED: model: dropout must lie in \[0, 1\), got 7$", lines[1])
    assert re.search(r"^  2  .*dropout=0.2  loss \d", lines[2])
    assert "Traceback" not in done.stderr
    *ended, last = done.stderr.splitlines()
    assert len(ended) == 3, "a line for each run as it ends"
    assert last.startswith("ddpm-train: 2 of 3 runs done, 1 failed. ")
    runs = [tmp_path / "sweep" / str(number) for number in range(3)]
    assert {result(directory)["gpu"] for directory in runs} == {"0", "1"}
    assert "step 4/4" in (runs[2] / "console.log").read_text(encoding="utf-8")
    assert (runs[2] / "checkpoints" / "step_00000004" / "ema.safetensors").is_file()


@pytest.mark.slow
def test_sampling_is_swept_by_joblib_onto_one_sheet(labelled: Path, tmp_path: Path):
    done = sample(*JOBLIB, f"ckpt={labelled}", "n=2", "sampler=ddim,heun", "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.strip() for line in table(done)][2:] == ["sweep/contact_sheet.png"]
    for number in range(2):
        assert result(tmp_path / "sweep" / str(number))["picture"] == str(tmp_path / f"sweep/{number}/samples.png")


def kill(process: Process) -> None:
    process.terminate()


def interrupt_at_a_terminal(process: Process) -> None:
    os.killpg(process.pid, signal.SIGINT)


@pytest.mark.parametrize("ask", [pytest.param(kill, marks=pytest.mark.slow), interrupt_at_a_terminal])
def test_a_signal_reaches_joblib_s_jobs_which_save(ask: Callable, begin, tmp_path: Path):
    process = begin(*ENDLESS, *JOBLIB, "seed=0,1,2")
    runs = [tmp_path / "sweep" / str(number) for number in range(3)]
    wait_for(lambda: all(map(trains, runs[:2])), process)
    ask(process)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    for directory, line in zip(runs[:2], table(done), strict=False):
        assert re.search(r"STOPPED: SIGTERM: stopped at step \d+ and saved", line)
        assert list(directory.glob("checkpoints/step_*"))
    assert table(done)[2].endswith("seed=2  not begun")


def how_to_go_on(done: subprocess.CompletedProcess) -> list[str]:
    """The arguments of the command that a sweep which is not done has said."""
    program, *arguments = shlex.split(done.stderr.rpartition("To go on, without those that are done: ")[2])
    assert program == "ddpm-train"
    return arguments


@as_stand_in
@pytest.mark.parametrize("launcher", [[], pytest.param(["hydra/launcher=joblib"], marks=pytest.mark.slow)])
@pytest.mark.slow
def test_a_stopped_sweep_goes_on_by_the_command_it_says(launcher: list[str], begin, tmp_path: Path):
    """One run done, one stopped, one not begun: in the end all are, and the first has not been run again."""
    one_by_one = ["hydra.launcher.n_jobs=1"] if launcher else []
    process = begin(*TINY, "-m", *launcher, *one_by_one, "seed=1", "name=x,y", "trainer.steps=1,12", "output_dir=o p")
    wait_for(lambda: any(map(trains, tmp_path.glob("o p/sweeps/*/1"))), process)
    process.terminate()
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert re.search(r"SIGTERM: 1 of 4 runs done, 1 stopped, 2 not begun\. ", done.stderr)
    endings = [r"loss 1\.0000", r"STOPPED: SIGTERM: stopped at step \d+ and saved", "not begun", "not begun"]
    for line, ending in zip(table(done), endings, strict=True):
        assert re.search(rf"  {ending}$", line)
    (sweep,) = (tmp_path / "o p" / "sweeps").iterdir()
    logs = [sweep / str(number) / "train.log" for number in range(4)]
    first = logs[0].read_text(encoding="utf-8")
    again = finish(begin(*how_to_go_on(done)))
    assert again.returncode == 0, again.stderr
    assert [line.endswith("  loss 1.0000") for line in table(again)] == [True] * 4
    assert [path.name for path in sweep.parent.iterdir()] == [sweep.name]
    assert logs[0].read_text(encoding="utf-8") == first
    assert "resumed  at step" in logs[1].read_text(encoding="utf-8")
    assert ["step 12/12" in log.read_text(encoding="utf-8") for log in logs] == [False, True, False, True]


@as_stand_in
def test_a_sweep_that_was_killed_goes_on(begin, tmp_path: Path):
    sweep = [*TINY, "-m", "trainer.steps=1,5", "hydra.sweep.dir=sweep"]
    process = begin(*sweep)
    wait_for(lambda: trains(tmp_path / "sweep" / "1"), process)
    process.kill()
    finish(process)
    assert [result(tmp_path / "sweep" / number)["under_way"] for number in "01"] == [False, True]
    done = finish(begin(*sweep, "seed=0"))
    assert done.returncode == 2, "another sweep than that of the run that was killed"
    assert "sweep/0 already holds a run of another sweep" in done.stderr
    done = finish(begin(*sweep))
    assert done.returncode == 0, done.stderr
    assert [line.endswith("  loss 0.0000") for line in table(done)] == [True, True]


@pytest.mark.slow
def test_a_job_of_submitit_that_is_stopped_goes_on_with_the_sweep(begin, tmp_path: Path):
    sweep = [*TINY, *SUBMITIT, "trainer.preview_every=0", "trainer.log_every=1", "trainer.steps=1,30"]
    process = begin(*sweep)
    runs = [tmp_path / "sweep" / str(number) for number in range(2)]
    wait_for(lambda: trains(runs[1]), process)
    log = next(log for log in tmp_path.glob("sweep/.submitit/*/*.out") if str(runs[1]) in log.read_text("utf-8"))
    os.kill(children(int(log.name.partition("_")[0]))[0], signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert "ddpm-train: 1 of 2 runs done, 1 stopped. To go on" in done.stderr
    again = finish(begin(*how_to_go_on(done)))
    assert again.returncode == 0, again.stderr
    assert [("  loss " in line) for line in table(again)] == [True, True]
    assert "resumed  at step" in (runs[1] / "train.log").read_text(encoding="utf-8")


@as_stand_in
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_directories_that_refer_to_what_is_swept_are_found_again(launcher: str, begin, tmp_path: Path):
    """As Hydra's users name them; the sweep goes on with another value, of which alone there is a new run."""
    named = ["hydra.sweep.dir='a sweep/${now:%Y}'", "hydra.sweep.subdir='${hydra.job.override_dirname}'"]
    named += ["hydra.job.config.override_dirname.exclude_keys=[trainer.steps]", f"hydra/launcher={launcher}"]
    for seeds in ("0,1", "0,1,2"):
        done = finish(begin("-m", *named, "trainer.steps=1", f"seed={seeds}"))
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in table(done)] == [f"seed={seed}" for seed in seeds.split(",")]
        assert [line.endswith(f"  loss {seed}.0000") for seed, line in enumerate(table(done))] == [True] * len(
            table(done)
        )
    home = only(tmp_path / "a sweep")
    logs = [home / f"seed={seed}" / "train.log" for seed in range(3)]
    assert [log.read_text(encoding="utf-8") for log in logs] == ["step 1/1\n"] * 3, "each has run once"


def test_a_job_that_is_killed_is_reported_with_the_others(begin, tmp_path: Path):
    process = begin(*ENDLESS, *JOBLIB, "seed=0,1")
    wait_for(lambda: all(trains(tmp_path / "sweep" / str(number)) for number in range(2)), process)
    os.kill(children(process.pid, "LokyProcess")[0], signal.SIGKILL)
    done = finish(process)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "the sweep has lost a job: " in done.stderr
    assert all("no result; it was killed" in line for line in table(done))


@pytest.mark.slow
def test_submitit_preempts_a_job_which_saves_and_goes_on(begin, tmp_path: Path):
    """Twice the same run, one of which is stopped by the signal of a Slurm that wants its node back."""
    steps = ["trainer.steps=30", "trainer.preview_every=0", "trainer.checkpoint_every=0", "trainer.log_every=1"]
    process = begin(*TINY, *SUBMITIT, *steps, "seed=3,3")
    runs = [tmp_path / "sweep" / str(number) for number in range(2)]
    wait_for(lambda: trains(runs[0]), process)
    job = next(
        int(log.name.partition("_")[0])
        for log in tmp_path.glob("sweep/.submitit/*/*.out")
        if str(runs[0]) in log.read_text(encoding="utf-8")
    )
    (task,) = children(job)
    os.kill(task, signal.SIGUSR2)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed  at step \d", (runs[0] / "train.log").read_text(encoding="utf-8"))
    assert result(runs[0])["final_loss"] == result(runs[1])["final_loss"]
    assert [("loss" in line) for line in table(done)] == [True, True]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(launcher: str, tmp_path: Path):
    code = (
        f"import sys; sys.modules['hydra_plugins'] = None\n"
        f"sys.argv = ['', '-m', 'hydra/launcher={launcher}', 'seed=1']\n"
        "from ddpm_cli.train import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (f"ddpm-train: hydra/launcher={launcher}: needs a plugin; pip install 'ddpm-cli[sweep]'\n")


def test_a_launcher_has_no_effect_without_m(tmp_path: Path):
    done = run("sample", "hydra/launcher=joblib", "ckpt=x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "ddpm-sample: hydra/launcher: has an effect only in a sweep, with -m\n"
