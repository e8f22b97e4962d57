"""Sweeps of both commands."""

import json
import re
from pathlib import Path

import numpy as np
from commands import TINY, TINY_RUN, assert_one_message, sample, train
from PIL import Image


def test_a_sweep_runs_every_combination_in_a_directory_of_its_own(home: Path):
    done = train(*TINY_RUN, "-m", "schedule=linear,cosine", "optimizer.lr=1e-4,2e-4", cwd=home)
    assert done.returncode == 0, done.stderr
    (sweep,) = (home / "outputs" / "sweeps").iterdir()
    assert sorted(p.name for p in sweep.iterdir() if p.is_dir()) == ["0", "1", "2", "3"]
    for directory in (path for path in sweep.iterdir() if path.is_dir()):
        assert "step 4/4" in (directory / "train.log").read_text()
        assert (directory / "checkpoints" / "step_00000004" / "ema.safetensors").is_file()
    assert not list(sweep.glob("*.png")), "runs that train have no picture to compare"
    *table, compared = done.stdout[done.stdout.index("sweep in") :].splitlines()[1:]
    assert compared == f"  compare  {(sweep / 'compare.html').relative_to(home)}"
    assert len(table) == 4
    for line, schedule, lr in zip(
        table, ("linear", "linear", "cosine", "cosine"), ("0.0001", "0.0002") * 2, strict=True
    ):
        assert re.search(rf"^  \d  schedule={schedule:6}  optimizer.lr={lr}  loss \d\.\d+$", line), line
    headers = [line for line in done.stdout.splitlines() if line.startswith("run ") and " of 4: " in line]
    for number, header in enumerate(headers, start=1):
        swept = ["linear", "linear", "cosine", "cosine"][number - 1], ("0.0001", "0.0002")[1 - number % 2]
        left = rf"  \({number - 1} done, about \d+ (s|min) left\)" if number > 1 else ""
        assert re.fullmatch(rf"run {number} of 4: schedule={swept[0]} optimizer.lr={swept[1]}{left}", header)
    assert len(headers) == 4


def test_a_run_that_fails_is_named_and_does_not_stop_the_sweep(home: Path):
    arguments = ["-m", "model.dropout=0.1,7,0.2", "trainer.steps=2", f"output_dir={home}/failing"]
    done = train(*TINY, *arguments, cwd=home)
    assert done.returncode == 1
    table = done.stdout[done.stdout.index("sweep in") :].splitlines()[1:]
    assert re.search(r"dropout=0.1  loss \d", table[0])
    assert re.search(r"dropout=7    FAILED: model: dropout must lie in \[0, 1\), got 7$", table[1])
    assert re.search(r"dropout=0.2  loss \d", table[2])
    assert "Traceback" not in done.stderr


def test_a_sweep_over_names_and_places_has_one_table_and_one_status(tmp_path: Path):
    done = train(*TINY, "trainer.steps=1", "-m", "name=a,b", "output_dir=x,y", "model.dropout=7", cwd=tmp_path)
    assert done.returncode == 1
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    table = done.stdout[done.stdout.index("sweep in") :].splitlines()
    assert table[0] == f"sweep in {sweep.relative_to(tmp_path)}"
    swept = [f"name={name}  output_dir={place}" for name in "ab" for place in "xy"]
    for number, (line, overrides) in enumerate(zip(table[1:], swept, strict=True)):
        assert line.startswith(f"  {number}  {overrides}  FAILED: model: dropout must lie in"), line
    assert "ddpm-train: 0 of 4 runs done, 4 failed. To go on" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


def test_runs_in_directories_of_the_user_s_own_are_found_wherever_they_lie(labelled: Path, sample_here, tmp_path: Path):
    places = ["hydra.sweep.dir=of/${sampler.steps}_steps", "hydra.sweep.subdir=seeds/${seed}"]
    done = sample_here("-m", f"ckpt={labelled}", "n=1", "sampler=ddim", "sampler.steps=2,99", "seed=1", *places)
    assert done.returncode == 1
    found, failed = done.stdout[done.stdout.index("sweep in of\n") :].splitlines()[1:]
    assert found == "  2_steps/seeds/1   sampler.steps=2   done"
    assert failed.startswith("  99_steps/seeds/1  sampler.steps=99  FAILED: ")
    assert [path.name for path in tmp_path.iterdir()] == ["of"]


def test_a_run_that_is_resumed_by_itself_enters_the_table(tmp_path: Path):
    """`resume=` of one run, here to a later step, a mistake, and the same sweep again."""
    sweep = [*TINY, "trainer.steps=2", "trainer.preview_every=0", "-m", "seed=1", "hydra.sweep.dir=sweep"]
    assert train(*sweep, cwd=tmp_path).returncode == 0
    run = tmp_path / "sweep" / "0"
    first = result(run)
    assert train("resume=sweep/0/checkpoints", "seed=2", cwd=tmp_path).returncode == 2
    assert result(run) == first
    assert train("resume=sweep/0", "trainer.steps=4", cwd=tmp_path).returncode == 0
    *_, last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert result(run) == first | {"final_loss": json.loads(last)["loss/mean"]} != first
    log = (run / "train.log").read_text(encoding="utf-8")
    again = train(*sweep, cwd=tmp_path)
    assert again.returncode == 0
    assert f"seed=1  loss {result(run)['final_loss']:.4f}\n" in again.stdout
    assert (run / "train.log").read_text(encoding="utf-8") == log, "a run that is done is not run again"


def test_sampling_can_be_swept(home: Path, trained):
    directory, _ = trained
    done = sample("-m", f"ckpt={directory}", "n=4", "sampler=ddpm,ddim,dpmpp_2m", "sampler.steps=2,3", cwd=home)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^  \d  sampler=d\w+ +sampler.steps=\d  done$", done.stdout, re.MULTILINE)) == 6
    (sweep,) = (home / "outputs" / "sweeps").iterdir()
    assert done.stdout.splitlines()[-1].strip() == f"{sweep.relative_to(home)}/contact_sheet.png"
    assert not (home / "outputs" / "samples").exists()
    side = 2 * 66 + 2
    with Image.open(sweep / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert pixels.shape[0] > 3 * side
    assert pixels.shape[1] > 2 * side
    for i in range(6):
        with Image.open(sweep / str(i) / "samples.png") as picture:
            assert places_of(np.asarray(picture), pixels) == [(i // 2, i % 2)]


def places_of(picture: np.ndarray, sheet: np.ndarray) -> list[tuple[int, int]]:
    """Where on a sheet of three rows and two columns of cells a picture lies: (row, column)."""
    height, width = picture.shape
    windows = np.lib.stride_tricks.sliding_window_view(sheet, width, axis=1)
    found = []
    for y in range(sheet.shape[0] - height + 1):
        for x in (windows[y] == picture[0]).all(1).nonzero()[0]:
            if np.array_equal(sheet[y : y + height, x : x + width], picture):
                found.append((3 * y // sheet.shape[0], int(x + width / 2 > sheet.shape[1] - width - 8)))
    return found


def result(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text(encoding="utf-8"))


def test_the_runs_of_a_sweep_begin_with_the_same_noise(labelled: Path, sample_here, tmp_path: Path):
    """One step from noise to image is x_0, whoever takes it."""
    options = ["sampler.steps=1", "n=3", "save=npz", "hydra.sweep.dir=sweep"]
    done = sample_here("-m", f"ckpt={labelled}", *options, "sampler=ddim,heun,dpmpp_2m")
    assert done.returncode == 0, done.stderr
    images = []
    for i in range(3):
        with np.load(tmp_path / "sweep" / str(i) / "samples.npz") as archive:
            images.append(archive["arr_0"].astype(int))
    for other in images[1:]:
        assert np.abs(images[0] - other).max() <= 1
    with Image.open(tmp_path / "sweep" / "contact_sheet.png") as sheet:
        assert sheet.width > 3 * 134
        assert sheet.height < 2 * 134


def test_a_sampling_run_that_fails_leaves_its_cell_empty(labelled: Path, sample_here, tmp_path: Path):
    done = sample_here(
        "-m", f"ckpt={labelled}", "n=1", "sampler=ddim,dpmpp_2m", "sampler.steps=99,2", "hydra.sweep.dir=sweep"
    )
    assert done.returncode == 1
    assert len(re.findall("FAILED: sampler: steps must be between 1 and the schedule's 20", done.stdout)) == 2
    assert "sweep/contact_sheet.png" in done.stdout
    sweep = tmp_path / "sweep"
    assert [result(sweep / str(i))["picture"] for i in range(4)] == [
        None, str(sweep / "1" / "samples.png"), None, str(sweep / "3" / "samples.png")
    ]  # fmt: skip
    with Image.open(sweep / "contact_sheet.png") as sheet:
        assert sheet.height > 2 * 68


def test_a_directory_that_holds_another_sweep_is_left_as_it_is(labelled: Path, sample_here, tmp_path: Path):
    done = sample_here("-m", f"ckpt={labelled}", "n=1", "sampler.steps=2,3", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    kept = sorted(file for file in tmp_path.rglob("*.*") if file.is_file() and file.name != "multirun.yaml")  # Hydra's
    before = [file.read_bytes() for file in kept]
    assert len(kept) == 2 * 4 + 1
    again = sample_here("-m", f"ckpt={labelled}", "n=1", "sampler=ddim", "sampler.steps=4,5", "hydra.sweep.dir=sweep")
    assert_one_message(
        again, "sample", "hydra.sweep.dir: sweep/0 already holds a run of another sweep: of sampler.steps=2, not"
    )
    assert [file.read_bytes() for file in kept] == before


def test_a_sweep_of_which_nothing_can_be_compared_has_no_sheet(labelled: Path, sample_here, tmp_path: Path):
    done = sample_here("-m", f"ckpt={labelled}", "n=1", "sampler.steps=2,99", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert (tmp_path / "sweep" / "0" / "samples.png").exists()
    assert not (tmp_path / "sweep" / "contact_sheet.png").exists()
    assert "contact_sheet" not in done.stdout
