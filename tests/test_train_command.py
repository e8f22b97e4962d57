"""`ddpm-train` as a user runs it: what a run says and leaves, how it goes on, help, the wheel."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, TINY_RUN, assert_one_message, only, run, train
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_run_says_what_it_is_about_to_do(trained):
    directory, done = trained
    for says in (
        "digits: 1,797 images, 16 x 16 x 1",
        r"UNet, [\d,]+ parameters",
        "cpu, fp32" if not os.environ.get("CUDA_VISIBLE_DEVICES") else "",
        r"4 of batch 8",
        str(directory.relative_to(directory.parent.parent.parent)),
    ):
        assert re.search(says, done.stdout), says
    assert re.search(r"step 2/4  loss \d.*grad norm .*lr .*img/s.*data \d", done.stdout), (
        "log lines where no terminal is"
    )
    assert "%|" not in done.stderr, "no progress bar where no terminal is"
    assert "step 2/4" in (directory / "train.log").read_text()


def test_a_run_leaves_what_is_promised(trained):
    directory, _ = trained
    assert sorted(p.name for p in directory.iterdir()) == [
        ".hydra", ".lock", "checkpoints", "config.yaml", "data.png", "metrics.jsonl", "previews", "run.json",
        "tensorboard", "train.log",
    ]  # fmt: skip
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]
    assert sorted(p.name for p in (directory / "previews").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    with Image.open(directory / "previews" / "step_00000004.png") as picture:
        assert picture.size == (2 * 66 + 2, 2 * 66 + 2)
    assert not any(character in str(directory.relative_to(directory.parents[2])) for character in "=,")
    description = json.loads((directory / "checkpoints" / "step_00000004" / "checkpoint.json").read_text())
    assert description["step"] == 4
    assert description["config"]["schedule"]["timesteps"] == 20


def test_tensorboard_holds_what_is_promised(trained):
    directory, _ = trained
    events = EventAccumulator(str(directory / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    promised = {"loss/mean", "train/grad_norm", "train/learning_rate", "train/ema_decay"}
    promised |= {"time/images_per_second", "time/data_fraction"}
    assert promised <= set(tags["scalars"])
    bins = {tag for tag in tags["scalars"] if tag.startswith("loss_by_t/")}
    assert bins <= {f"loss_by_t/{i:04d}" for i in range(0, 20, 2)}
    assert len(bins) >= 5, "sixteen draws fall into more than half of the ten bins"
    for tag in promised:
        assert [event.step for event in events.Scalars(tag)] == [2, 4], tag
        assert all(np.isfinite(event.value) for event in events.Scalars(tag)), tag
    assert [event.step for event in events.Images("preview")] == [2, 4]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "ddpm_cli.diffusion.schedule.cosine" in text
    assert "base_channels: 8" in text


def test_a_resumed_run_ends_where_one_that_was_never_stopped_ends(home: Path, trained):
    straight = train(*TINY, "trainer.steps=6", "trainer.checkpoint_every=0", "name=straight", cwd=home)
    directory, _ = trained
    resumed = train(f"resume={directory}", "trainer.steps=6", cwd=home)
    assert (straight.returncode, resumed.returncode) == (0, 0), resumed.stderr
    assert "resumed  at step 4" in resumed.stdout
    other = only(home / "outputs" / "straight")
    for file in ("ema.safetensors", "training.safetensors"):
        ours = load_file(directory / "checkpoints" / "step_00000006" / file)
        theirs = load_file(other / "checkpoints" / "step_00000006" / file)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), file
    loss = re.findall(r"step 6/6  loss (\S+)", resumed.stdout)
    assert loss == re.findall(r"step 6/6  loss (\S+)", straight.stdout)
    assert len(loss) == 1
    done_already = train(f"resume={directory}", cwd=home)
    assert done_already.returncode == 0, done_already.stderr
    assert "has done its 6 steps; trainer.steps=N trains further" in done_already.stdout
    changed = train(f"resume={directory}", "trainer.steps=8", "model.base_channels=16", cwd=home)
    assert changed.returncode == 2
    assert "model.base_channels: cannot change when resuming: the run has 8, this command line 16" in changed.stderr
    for change in ("schedule=linear", "experiment=quickstart", "data=cifar10"):
        changed = train(f"resume={directory}", "trainer.steps=8", change, cwd=home)
        assert_one_message(changed, "train", f"{change.partition('=')[0]}: cannot change when resuming: the run has ")


@pytest.mark.parametrize("program", ["train", "sample", "eval"])
def test_help_explains_itself(program: str, tmp_path: Path):
    done = run(program, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count(f"  ddpm-{program} ") + done.stdout.count(f"  ddpm-{program}\n") >= 5, "five examples"
    assert max(map(len, done.stdout.splitlines())) <= 120
    groups = [r"sampler=d\w+ .*: ddim, ddpm, dpmpp_2m", r"variance=\w+ .*: fixed_large,\s+fixed_small"]
    values = [r"seed=0 .*function of \(seed, i\)"]
    if program == "train":
        groups += [r"schedule=cosine .*: cosine, custom, linear"]
        values = [r"name=null .*directory is outputs/NAME/DATE_TIME"]
    for says in groups + values:
        assert re.search(rf"^  {says}", done.stdout, re.MULTILINE), says
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["shedule=linear"], ["trainer.steps=abc"]])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str], tmp_path: Path):
    code = (
        f"import sys; sys.argv = ['ddpm-train', *{arguments!r}]\n"
        "from ddpm_cli.train import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(17 if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True).returncode == 0


def test_cfg_job_shows_what_would_run(tmp_path: Path):
    done = train("data=cifar10", "optimizer.lr=3e-4", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "lr: 0.0003" in done.stdout
    assert "steps: 800000" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_schedule_and_a_dataset_of_ones_own_are_one_function_and_one_yaml(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import numpy as np, torch\n"
        "from ddpm_cli.data.image_set import ImageSet\n"
        "from ddpm_cli.diffusion.schedule import NoiseSchedule\n\n"
        "def constant(timesteps: int = 1000, *, beta: float = 0.01) -> NoiseSchedule:\n"
        "    return NoiseSchedule(torch.full((timesteps,), beta))\n\n"
        "def stripes(*, image_size: int, channels: int) -> ImageSet:\n"
        "    pixels = np.zeros((9, channels, image_size, image_size), np.uint8)\n"
        "    pixels[:, :, ::2] = 255\n"
        "    return ImageSet(pixels, 'stripes', flip='none')\n"
    )
    for group, text in {
        "schedule": "_target_: mine.constant\ntimesteps: 20\nbeta: 0.05\n",
        "data": "_target_: mine.stripes\nimage_size: 16\nchannels: 1\n",
    }.items():
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "own.yaml").write_text(text)
    chosen = ["--config-dir", "conf", "schedule=own", "data=own", *TINY_RUN]
    done = train(*chosen, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "stripes: 9 images" in done.stdout
    for steps in ("trainer.steps=2", "trainer.steps=4"):  # what the command line names it may also go on with
        again = train(*chosen, "name=own", steps, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert again.returncode == 0, again.stderr
    assert "resumed  at step 2" in again.stdout
    wrong = train(*chosen, "schedule.bta=1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert_one_message(wrong, "train", r"schedule.bta: no such option \(did you mean 'beta'\?\)")
    (run_directory,) = (tmp_path / "outputs" / "stripes").iterdir()
    refused = run("sample", f"ckpt={run_directory}", "n=1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert_one_message(refused, "sample", "schedule._target_: mine.constant is not on the list")
    resume = [f"resume={run_directory}", "trainer.steps=6"]
    refused = train(*resume, "trust=[mine.constant]", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert_one_message(refused, "train", "data._target_: mine.stripes is not on the list")
    trusted = train(*resume, "trust=[mine.constant,mine.stripes]", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert trusted.returncode == 0, trusted.stderr
    trusted = run(
        "sample", f"ckpt={run_directory}", "n=1", "trust=[mine.constant]", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert trusted.returncode == 0, trusted.stderr


@pytest.mark.slow
def test_a_plain_wheel_trains_elsewhere(tmp_path: Path):
    """The wheel, unpacked where no checkout is near, with the environment's other packages."""
    project = Path(__file__).resolve().parent.parent
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(project),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    assert (site / "ddpm_cli" / "configs" / "train.yaml").is_file()
    (tmp_path / "elsewhere").mkdir()
    script = site / "bin" / "ddpm-train"
    done = subprocess.run(
        [sys.executable, str(script), *TINY, "trainer.steps=2", "trainer.preview_every=0"],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "elsewhere" / "outputs" / "digits").glob("*/checkpoints/step_00000002/manifest.json"))
    where = "import ddpm_cli, pathlib; print(pathlib.Path(ddpm_cli.__file__).parent)"
    found = subprocess.run(
        [sys.executable, "-c", where],
        env=os.environ | {"PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == site / "ddpm_cli", "it was the wheel that ran, not the checkout"
