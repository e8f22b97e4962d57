"""ddpm-train and ddpm-eval, one thread each, as many at a time as there are processors; what is done stays done."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

ROOT = Path(__file__).resolve().parents[2]
METRICS = "metrics=[fd,precision_recall]"
CHECKPOINT = "step_{:08d}"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Score:
    """Of `n` images against all that was trained on: Frechet distance of a classifier's features, and both shares."""

    fd: float
    precision: float
    recall: float


def side_by_side(function: Callable[[Item], Made], items: Iterable[Item]) -> list[Made]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Raises RuntimeError with what a command says last if it fails."""
    _, said = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, process.args))} failed: {said.strip()[-500:]}")


def trained(runs: Path, name: str, overrides: Sequence[str], *, until: int | None = None) -> Path:
    """A run of this name, resumed if it is there; ended as by Ctrl-C once it has a checkpoint of step `until`."""
    done = runs / f"{name}.done"
    if not done.is_file():
        told = (*overrides, f"name={name}", f"output_dir={runs}", "trainer.preview_every=0", "trainer.keep_last=1000")
        process = start("ddpm_cli.train", *told)
        if until is None:
            finish(process)
        else:
            _stop_at(process, runs / name, until)
        done.touch()
    (run,) = (runs / name).glob("*/")
    return run


def _stop_at(process: subprocess.Popen[str], runs: Path, step: int) -> None:
    reached = f"*/checkpoints/{CHECKPOINT.format(step)}/manifest.json"
    while process.poll() is None and not list(runs.glob(reached)):
        time.sleep(0.2)
    process.terminate()
    _, said = process.communicate()
    if not list(runs.glob(reached)):
        raise RuntimeError(f"{runs.name} has no step {step}: {said.strip()[-500:]}")


def scored(out: Path, count: int, *told: str) -> Score:
    """What ddpm-eval says of `count` images, with a classifier's features; kept in `out`."""
    kept = out / "score.json"
    if not kept.is_file():
        finish(start("ddpm_cli.eval", *told, f"n={count}", METRICS, "features=classifier", "device=cpu", f"out={out}"))
        (record,) = (file for file in out.glob("*.json") if file != kept)
        values = {figure["metric"]: figure["value"] for figure in json.loads(record.read_text())["metrics"]}
        score = Score(values["fd"], values["precision"], values["recall"])
        kept.write_text(json.dumps(asdict(score)))
    return Score(**json.loads(kept.read_text()))


def checkpoint(run: Path, step: int) -> str:
    return f"ckpt={run / 'checkpoints' / CHECKPOINT.format(step)}"
