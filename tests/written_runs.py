"""Directories of runs and their evaluations as the commands leave them, written without training anything."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

CONFIG = {
    "name": None,
    "seed": 0,
    "output_dir": "outputs",
    "resume": "auto",
    "trust": [],
    "fork": None,
    "schedule": {
        "_target_": "ddpm_cli.diffusion.schedule.cosine",
        "timesteps": 20,
        "s": 0.008,
        "beta_min": 0.0001,
        "beta_max": 0.9999,
        "zero_terminal_snr": False,
    },
    "prediction": {"_target_": "ddpm_cli.diffusion.prediction.Epsilon"},
    "loss": {"_target_": "ddpm_cli.diffusion.loss.Simple"},
    "optimizer": {"_target_": "ddpm_cli.training.optimizers.adamw", "_partial_": True, "lr": 0.001},
    "trainer": {
        "_target_": "ddpm_cli.training.trainer_config.TrainerConfig",
        "steps": 100,
        "batch_size": 8,
        "grad_clip": 1.0,
    },
    "data": {"_target_": "ddpm_cli.data.datasets.digits", "image_size": 16, "channels": 1, "flip": "none"},
}
LINEAR = {
    "_target_": "ddpm_cli.diffusion.schedule.linear",
    "timesteps": 20,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "zero_terminal_snr": False,
}


def config(**changes: object) -> dict:
    """CONFIG with some keys changed: dots are `__` here."""
    changed = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *groups, option = key.split("__")
        node = changed
        for group in groups:
            node = node[group]
        node[option] = value
    return changed


def metrics(losses: list[float], *, every: int = 10, heldout: list[float] | None = None) -> list[dict]:
    """Lines of metrics.jsonl: a loss every so many steps at 100 images a second, and what was held out."""
    lines: list[dict] = []
    for i, loss in enumerate(losses, start=1):
        lines.append({"step": i * every, "loss/mean": loss, "train/overflows": 0, "time/images_per_second": 100.0})
        if heldout is not None and i <= len(heldout):
            lines.append({"step": i * every, "eval/heldout": heldout[i - 1]})
    return lines


def write_run(
    directory: Path,
    configuration: dict | None,
    lines: list[dict],
    *,
    preview: int | None = 40,
    result: dict | None = None,
    begun_in: str | None = "/work place",
) -> Path:
    """A run's directory with what it has left; its preview is grey, of this brightness."""
    directory.mkdir(parents=True)
    if configuration is not None:
        (directory / "config.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False), encoding="utf-8")
        identity = {"id": directory.name, "name": None, "begun": "2026-11-26T10:00:00+00:00", "begun_in": begun_in}
        (directory / "run.json").write_text(json.dumps(identity), encoding="utf-8")
    if lines:
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (directory / "metrics.jsonl").write_text(text, encoding="utf-8")
    if preview is not None:
        (directory / "previews").mkdir()
        Image.new("L", (66, 66), preview).save(directory / "previews" / "step_00000100.png")
    if result is not None:
        (directory / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return directory


def result(overrides: list[str], loss: float | None = None, error: str | None = None, stopped: bool = False) -> dict:
    """What a run of a sweep leaves as result.json."""
    rest = {"picture": None, "gpu": None, "under_way": False}
    return {"overrides": overrides, "final_loss": loss, "error": error, "stopped": stopped, **rest}


def figure(name: str, value: float, *, n: int = 1797, split: str = "train", **more: object) -> dict:
    """One entry of `metrics` in a record. Its fingerprint is of name, n and split."""
    fingerprint = hashlib.sha256(json.dumps([name, n, split]).encode()).hexdigest()[:16]
    whole = {"name": name, "metric": name.split("1")[0], "value": value, "standard_error": None, "n": n}
    return {**whole, "fingerprint": fingerprint, "class": None, **more}


def write_evaluation(
    run: Path,
    name: str,
    figures: list[dict],
    *,
    step: int = 100,
    sampler: str = "dpmpp_2m_sde",
    calls: int = 25,
    split: str = "train",
) -> Path:
    """A record of `ddpm-eval`, RUN/eval/NAME.json."""
    n = figures[0]["n"]
    record = {
        "format": 1,
        "created": "2026-11-26T10:00:00+00:00",
        "model": {
            "run": str(run),
            "checkpoint": f"step_{step:08d}",
            "step": step,
            "sha256": "0" * 64,
            "weights": "ema",
            "ema_length": None,
        },
        "samples": {
            "source": "drawn",
            "n": n,
            "seed": 0,
            "sampler": {"_target_": "x"},
            "sampler_name": sampler,
            "steps": calls,
            "network_calls": calls,
            "guidance": {"scale": 1.0},
            "threshold": "static",
            "variance": None,
            "precision": "fp32",
            "device": "cpu",
            "classes": None,
        },
        "features": {"name": "classifier", "identity": {"weights": "1" * 64}},
        "reference": {"name": "digits", "split": split, "n": n, "sha256": "2" * 64, "resize": "none"},
        "metrics": figures,
        "seconds": {"sampling": 12.3, "features": 0.4, "reference": 0.2},
        "images_per_second": 143.2,
        "command": f"ddpm-eval ckpt={run}",
        "versions": {"ddpm_cli": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"},
    }
    (run / "eval").mkdir(exist_ok=True)
    file = run / "eval" / f"{name}.json"
    file.write_text(json.dumps(record), encoding="utf-8")
    return file


def write_gallery(home: Path, runs: int = 12) -> None:
    """A directory like that of a week's work: a sweep with curves and evaluations, another run, and a failure."""
    rng = np.random.default_rng(0)
    for i in range(runs):
        lr = 10.0 ** -(3 + i % 3)
        schedule = LINEAR if i % 2 else CONFIG["schedule"]
        floor = 0.04 + 0.01 * (i % 3) + 0.003 * (i % 2)
        losses = [floor + math.exp(-j / 8) + 0.01 * rng.random() for j in range(60)]
        run = write_run(
            home / "sweep" / str(i),
            config(seed=i, optimizer__lr=lr, schedule=schedule, trainer__steps=600),
            metrics(losses, heldout=[loss * 1.05 for loss in losses]),
            preview=None,
            result=result([f"seed={i}", f"optimizer.lr={lr}"], losses[-1]),
        )
        (run / "previews").mkdir()
        pixels = rng.integers(0, 256, (198, 198, 3)).astype(np.uint8)
        pixels[:, :, i % 3] //= 3
        Image.fromarray(pixels).save(run / "previews" / "step_00000600.png")
        for step in (200, 400, 600):
            figures = [
                figure("fd1k_classifier", 40 * floor * 600 / step + rng.random()),
                figure("kd1k_classifier", 0.02 * floor * 600 / step, standard_error=0.0001),
            ]
            write_evaluation(run, f"step_{step}", figures, step=step)
        for sampler, worse in (("dpmpp_2m_sde", 1.0), ("ddim", 1.4)):
            for calls in (5, 10, 20, 50, 100):
                value = 40 * floor * worse * (1 + 20 / calls) + rng.random()
                write_evaluation(
                    run,
                    f"{sampler}_{calls}",
                    [figure("fd1k_classifier", value)],
                    step=600,
                    sampler=sampler,
                    calls=calls,
                )
    write_run(
        home / "sweep" / str(runs), None, [], preview=None, result=result(["seed=99"], error="trainer: no memory")
    )
    other = write_run(
        home / "other", config(prediction={"_target_": "ddpm_cli.diffusion.prediction.V"}), metrics([1.0])
    )
    write_evaluation(other, "test", [figure("fd1k_classifier", 5.0, split="test")], split="test")
