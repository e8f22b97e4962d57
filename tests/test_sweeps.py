"""Sweeps of both commands."""

import re
from pathlib import Path

from commands import TINY, TINY_RUN, sample, train


def test_a_sweep_runs_every_combination_in_a_directory_of_its_own(home: Path):
    done = train(*TINY_RUN, "-m", "schedule=linear,cosine", "optimizer.lr=1e-4,2e-4", cwd=home)
    assert done.returncode == 0, done.stderr
    (sweep,) = (home / "outputs" / "sweeps").iterdir()
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == ["0", "1", "2", "3"]
    for directory in (path for path in sweep.iterdir() if path.is_dir()):
        assert "step 4/4" in (directory / "train.log").read_text()
        assert (directory / "checkpoints" / "step_00000004" / "ema.safetensors").is_file()
    table = done.stdout[done.stdout.index("sweep in") :].splitlines()[1:]
    assert len(table) == 4
    for line, schedule, lr in zip(
        table, ("linear", "linear", "cosine", "cosine"), ("0.0001", "0.0002") * 2, strict=True
    ):
        assert re.search(rf"schedule={schedule} optimizer.lr={lr}  loss \d\.\d+$", line), line


def test_a_run_that_fails_is_named_and_does_not_stop_the_sweep(home: Path):
    arguments = ["-m", "model.dropout=0.1,7,0.2", "trainer.steps=2", f"output_dir={home}/failing"]
    done = train(*TINY, *arguments, cwd=home)
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("sweep in") :].splitlines()[1:]
    assert re.search(r"dropout=0.1 .* loss \d", table[0])
    assert re.search(r"dropout=7 .* FAILED: model: dropout must lie in \[0, 1\), got 7$", table[1])
    assert re.search(r"dropout=0.2 .* loss \d", table[2])
    assert "Traceback" not in done.stderr


def test_sampling_can_be_swept(home: Path, trained):
    directory, _ = trained
    done = sample("-m", f"ckpt={directory}", "n=1", "sampler=ddpm,ddim", "sampler.steps=2,3", cwd=home)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"sampler=dd\wm sampler.steps=\d  done", done.stdout)) == 4
