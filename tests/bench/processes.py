"""What takes processes of their own: start-up, the first training step, resident memory, commands as a whole."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import peers
from bench.cases import Place
from bench.clock import spread
from bench.ours import named

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds, for one process
FIGURES = "metrics.jsonl"  # in a run's directory: a line per entry of its log


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path.rstrip(os.pathsep)}


def _start(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=_environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a module says that is run with these arguments. Raises RuntimeError if it fails."""
    process = _start(*arguments, cwd=cwd, **environment)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    if process.returncode != 0:
        last = err.strip().splitlines() or ["said nothing"]
        raise RuntimeError(f"{arguments[0]} ended with {process.returncode}: {last[-1]}")
    return out


def _each(row: str, who: str, unit: str, measure: Callable[[], float], rounds: int) -> dict:
    entry = {"row": row, "who": who, "unit": unit}
    try:
        return entry | spread([measure() for _ in range(rounds)])
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return entry | {"failure": str(error)}


def start_up(device: str, directory: Path, rounds: int) -> list[dict]:
    """Seconds until --help is there, and until experiment=quickstart has trained its first step."""

    def help_of(module: str) -> float:
        began = time.perf_counter()
        run(module, "--help", cwd=directory)
        return time.perf_counter() - began

    commands = {"ddpm-train --help": "ddpm_cli.train", "ddpm-sample --help": "ddpm_cli.sample"}
    return [
        *(
            _each("start-up", name, "s", lambda module=module: help_of(module), rounds)
            for name, module in commands.items()
        ),
        _each(
            "start-up",
            "ddpm-train experiment=quickstart, to its first step",
            "s",
            lambda: _first_step_of_quickstart(device, directory),
            rounds,
        ),
    ]


def _first_step_of_quickstart(device: str, directory: Path) -> float:
    output = directory / f"quickstart_{time.monotonic_ns()}"
    began = time.perf_counter()
    process = _start(
        "ddpm_cli.train", "experiment=quickstart", f"output_dir={output}", f"trainer.device={device}",
        *("trainer.steps=1", "trainer.log_every=1", "trainer.preview_every=0", "resume=null"),
        cwd=directory,
    )  # fmt: skip
    try:
        while not any(file.stat().st_size > 0 for file in output.glob(f"*/*/{FIGURES}")):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise RuntimeError("experiment=quickstart wrote no figures of its first step")
            time.sleep(0.005)
        took = time.perf_counter() - began
        process.communicate(timeout=PATIENCE)
        return took
    finally:
        process.kill()


def first_steps(place: Place, rounds: int) -> list[dict]:
    """Seconds from the start of a process to the end of its first training step, and the memory it then takes."""
    ours = named(place.device, "false")  # what is compiled takes as long as compiling does: the row of training says
    everybody = [ours, *(contestant.name for contestant in peers.training(place))]
    entries = []
    for who in everybody:
        seen: list[dict] = []

        def measure(who: str = who, seen: list[dict] = seen) -> float:
            seen.append(_alone(place, who))
            return seen[-1]["first_step_seconds"]

        entry = _each("first step", who, "s", measure, rounds)
        if seen and place.device == "cpu":
            entry["peak_bytes"] = max(said["resident_bytes"] for said in seen)
        entries.append(entry)
    return entries


def _alone(place: Place, who: str) -> dict:
    said = run(
        "bench.alone",
        *("--config", place.case.name, "--device", place.device, "--precision", place.precision),
        *("--directory", str(place.directory), "--who", who, "--started", repr(time.time())),
        cwd=place.directory,
    )
    return json.loads(said.strip().splitlines()[-1])


def untrained_run(place: Place, name: str) -> Path:
    """The directory of a run of one step. Raises as `run`."""
    output = place.directory / "runs"
    told = ("trainer.steps=1", "trainer.preview_every=0", f"output_dir={output}", f"name={name}", "resume=null")
    run("ddpm_cli.train", *place.overrides(*told), cwd=place.directory)
    (checkpoints,) = output.glob(f"{name}/*/checkpoints")
    return checkpoints.parent


def many_images(place: Place, count: int, calls: int) -> list[dict]:
    """Images per second of a whole ddpm-sample command that writes them to disk, from its start to its end."""
    try:
        directory = untrained_run(place, "many")
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return [{"row": "many images", "who": "ddpm-train", "unit": "images/s", "failure": str(error)}]

    def draw(compiled: str) -> float:
        began = time.perf_counter()
        run(
            "ddpm_cli.sample", f"ckpt={directory}", f"n={count}", f"batch_size={place.case.sampled[place.device]}",
            *("save=npz", "sampler=ddim", f"sampler.steps={calls}", f"device={place.device}", f"compile={compiled}"),
            cwd=place.directory,
        )  # fmt: skip
        return count / (time.perf_counter() - began)

    return [
        _each("many images", f"ddpm-sample n={count} sampler.steps={calls} save=npz compile={way}", "images/s",
              lambda way=way: draw(way), 1)
        for way in ("false", "true")
    ]  # fmt: skip
