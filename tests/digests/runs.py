"""Recipes carried out: every command in a process forked from one that has imported everything."""

import importlib
import json
import pkgutil
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import torch
from torture.trials import Process, command, fork

import ddpm_cli
from digests import hashing, in_python
from digests.recipe import Recipe

TIMEOUT = 300  # seconds, of one command on a machine that has much else to do


def preload() -> None:
    """Import what the commands import, once, and keep torch to one thread: threads do not survive a fork."""
    for name in ("sklearn.datasets", "tensorboard.compat.proto.event_pb2", "torch._dynamo", "torchvision.datasets"):
        importlib.import_module(name)
    for module in pkgutil.walk_packages(ddpm_cli.__path__, "ddpm_cli."):
        importlib.import_module(module.name)
    torch.set_num_threads(1)


def carry_out(recipe: Recipe, place: Path) -> dict[str, str]:
    """The digests of all that a recipe makes, by name; `place` is a directory of its own, removed afterwards.

    Raises:
        RuntimeError: if a command fails; says what it said.
    """
    run = _train(recipe.train, place, recipe.processes)
    if recipe.forget_after is not None:
        for checkpoint in run.glob("checkpoints/step_*"):
            if int(checkpoint.name.removeprefix("step_")) > recipe.forget_after:
                shutil.rmtree(checkpoint)
    for arguments in recipe.again:
        _train(_with_run(arguments, run), place, recipe.processes)
    digests = hashing.of_run(run)
    for name, arguments in recipe.samples.items():
        given = arguments if any(argument.startswith("ckpt=") for argument in arguments) else ["ckpt=RUN", *arguments]
        _wait_for([command("sample", [*_with_run(given, run), "save=npz", f"out={name}"], place)])
        digests |= {f"{name}/{key}": digest for key, digest in hashing.of_samples(place / name).items()}
    shutil.rmtree(place)
    return digests


def carry_out_in_python(place: Path) -> dict[str, str]:
    """As `carry_out`, of what needs no command."""
    answer = place.with_suffix(".json")
    _wait_for([fork(lambda: answer.write_text(json.dumps(in_python.carry_out())), place)])
    return json.loads(answer.read_text())


def _with_run(arguments: Sequence[str], run: Path) -> list[str]:
    return [argument.replace("RUN", str(run)) for argument in arguments]


def _train(arguments: Sequence[str], place: Path, processes: int) -> Path:
    """Train to the end; returns the run's directory, of which `place` holds one."""
    together = {}
    if processes > 1:
        together = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    begun = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)} if together else {}
        begun.append(command("train", list(arguments), place, **together, **own))
    _wait_for(begun)
    (run,) = place.glob("outputs/*/*_*")
    return run


def _wait_for(processes: Sequence[Process]) -> None:
    statuses = [process.wait(TIMEOUT) for process in processes]
    if any(statuses):
        raise RuntimeError("\n".join(process.said().strip()[-2000:] for process in processes))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
