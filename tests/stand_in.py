"""A command that trains nothing: for tests of how sweeps start, stop and lose their jobs, whatever these do.

What a run leaves and says is as of ddpm-train, as far as those tests look at it.
"""

import time
from functools import partial
from pathlib import Path

from ddpm_cli.cli.launch import launch
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.train_options import OPTIONS
from ddpm_cli.runtime.exit_codes import Stopped
from ddpm_cli.runtime.signals import Stop

MAIN = "import stand_in; stand_in.main()"  # with this directory on PYTHONPATH
STEP_SECONDS = 0.1


def main() -> None:
    stop = Stop()
    stop.listen()
    launch("ddpm-train", "train", OPTIONS, partial(job, stop=stop), stop=stop)


def job(config: dict, call: Invocation, stop: Stop) -> float:
    assert call.sweep_directory is not None
    checkpoints = call.sweep_directory / "checkpoints"
    begun = sorted(checkpoints.glob("step_*"))
    checkpoints.mkdir(parents=True, exist_ok=True)
    done = int(begun[-1].name.removeprefix("step_")) if begun else 0
    log = call.sweep_directory / "train.log"
    print(f"run      {call.sweep_directory}", flush=True)
    if done > 0:
        _write(log, f"resumed  at step {done}")
    dropout, steps = config["model"]["dropout"], config["trainer"]["steps"]
    if dropout >= 1:
        raise ConfigError(f"model: dropout must lie in [0, 1), got {dropout}")
    stop.defer("saving after this step")
    while done < steps:
        if stop.requested:
            (checkpoints / f"step_{done:08d}").mkdir()
            raise Stopped(f"{stop.signal}: stopped at step {done} and saved")
        time.sleep(STEP_SECONDS)
        done += 1
        _write(log, f"step {done}/{steps}")
    (checkpoints / f"step_{done:08d}").mkdir()
    (checkpoints / f"step_{done:08d}" / "ema.safetensors").touch()
    return float(config["seed"])


def _write(log: Path, line: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        print(line, file=file)
    print(line, flush=True)
