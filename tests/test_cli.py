"""The commands as a user runs them: in subprocesses, from another directory, with good and with bad input."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TINY = [
    "model.base_channels=8",
    "model.norm_groups=4",
    "model.channel_mults=[1,2]",
    "trainer.batch_size=8",
    "trainer.log_every=2",
    "trainer.preview_images=4",
    "sampler.steps=3",
    "schedule.timesteps=20",
    "trainer.warmup_steps=0",
    "trainer.lr_decay=constant",  # the shape of a decay depends on trainer.steps, which resuming changes here
]
TINY_RUN = [*TINY, "trainer.steps=4", "trainer.preview_every=2", "trainer.checkpoint_every=2"]


def run(
    program: str, *arguments: str, cwd: Path, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"ddpm_cli.{program}", *arguments],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return run("train", *arguments, cwd=cwd, **environment)


def sample(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return run("sample", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished run of four steps, from a directory that has nothing to do with the project."""
    done = train(*TINY_RUN, cwd=home)
    assert done.returncode == 0, done.stderr
    (directory,) = (home / "outputs" / "digits").iterdir()
    return directory, done


# A run and what it leaves -------------------------------------------------------------------------------------------


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
    assert "training:" not in done.stderr, "no progress bar where no terminal is"
    assert "step 2/4" in (directory / "train.log").read_text()


def test_a_run_leaves_what_is_promised(trained):
    directory, _ = trained
    assert sorted(p.name for p in directory.iterdir()) == [
        "checkpoints", "config.yaml", "previews", "tensorboard", "train.log",
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
    (other,) = (home / "outputs" / "straight").iterdir()
    for file in ("ema.safetensors", "training.safetensors"):
        ours = load_file(directory / "checkpoints" / "step_00000006" / file)
        theirs = load_file(other / "checkpoints" / "step_00000006" / file)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours), file
    loss = re.findall(r"step 6/6  loss (\S+)", resumed.stdout)
    assert loss == re.findall(r"step 6/6  loss (\S+)", straight.stdout)
    assert len(loss) == 1
    done_already = train(f"resume={directory}", cwd=home)
    assert done_already.returncode == 2
    assert "has done its 6 steps" in done_already.stderr
    changed = train(f"resume={directory}", "trainer.steps=8", "model.base_channels=16", cwd=home)
    assert changed.returncode == 2
    assert "model.base_channels: cannot change when resuming: the run has 8, this command line 16" in changed.stderr
    for change in ("schedule=linear", "experiment=quickstart", "data=cifar10"):
        changed = train(f"resume={directory}", "trainer.steps=8", change, cwd=home)
        assert_one_message(changed, "train", f"{change.partition('=')[0]}: cannot change when resuming: the run has ")


# Sampling ------------------------------------------------------------------------------------------------------------


def test_sampling_needs_only_the_checkpoint(home: Path, trained):
    directory, _ = trained
    done = sample(f"ckpt={directory}", "n=5", cwd=home)
    assert done.returncode == 0, done.stderr
    (picture,) = (directory / "samples").glob("*/samples.png")
    assert str(picture) in done.stdout
    with Image.open(picture) as grid:
        assert grid.mode == "L"
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2), "16 x 16 images enlarged four times, three in a row"


def test_image_i_is_the_same_for_every_batch_size_and_every_kind_of_ckpt(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    newest = sorted((directory / "checkpoints").iterdir())[-1]
    found = {}
    for name, ckpt, batch_size in [
        ("run", directory, 5), ("checkpoint", newest, 2), ("file", newest / "ema.safetensors", 1)
    ]:  # fmt: skip
        out = tmp_path / name
        done = sample(f"ckpt={ckpt}", f"batch_size={batch_size}", "n=5", "save=npz", f"out={out}", cwd=home)
        assert done.returncode == 0, done.stderr
        with np.load(out / "samples.npz") as archive:
            found[name] = archive["arr_0"]
    assert found["run"].shape == (5, 16, 16, 1)
    assert found["run"].dtype == np.uint8
    for name in ("checkpoint", "file"):
        difference = np.abs(found["run"].astype(int) - found[name].astype(int))
        assert difference.max() <= 1, "kernels for other batch sizes may round the last bit the other way"
    assert not np.array_equal(found["run"][0], found["run"][1])


def test_films_single_images_and_the_other_weights(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    arguments = [f"ckpt={directory}", "n=3", "batch_size=2", "sampler=ddim", "sampler.steps=6", "seed=4"]
    done = sample(*arguments, "save=images", "save_steps=true", f"out={tmp_path}/a", cwd=home)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "a" / "images").iterdir()) == [f"{i:06d}.png" for i in range(3)]
    with Image.open(tmp_path / "a" / "steps.png") as strip:
        assert strip.size == (6 * 66 + 2, 3 * 66 + 2), "a row per image, a column per step"
    with Image.open(tmp_path / "a" / "steps.gif") as film:
        assert film.n_frames == 6
    done = sample(*arguments, "weights=model", f"out={tmp_path}/b", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "samples.png").read_bytes() != (tmp_path / "b" / "samples.png").read_bytes()
    again = sample(*arguments, f"out={tmp_path}/a", cwd=home)
    assert again.returncode == 2
    assert "already holds samples.png" in again.stderr


def test_the_checkpoints_variance_is_used_unless_another_is_chosen(home: Path, trained, tmp_path: Path):
    directory, _ = trained
    pictures = {}
    for name, extra in {"own": [], "small": ["variance=fixed_small"], "large": ["variance=fixed_large"]}.items():
        done = sample(f"ckpt={directory}", "n=2", "sampler.steps=5", *extra, f"out={tmp_path}/{name}", cwd=home)
        assert done.returncode == 0, done.stderr
        pictures[name] = (tmp_path / name / "samples.png").read_bytes()
    assert pictures["own"] == pictures["small"] != pictures["large"]


# Sweeps --------------------------------------------------------------------------------------------------------------


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


# Mistakes ------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "shedule=linear": r"shedule: no such option \(did you mean 'schedule'\?\)",
    "+trainer.stepz=3": r"trainer.stepz: no such option \(did you mean 'steps'\?\)",
    "optimizer.lrr=1": r"optimizer.lrr: no such option \(did you mean 'lr'\?\)",
    "++foo.bar=1": "foo: no such option",
    "schedule=cosin": r"schedule=cosin: no such option \(did you mean 'cosine'\?\); there are cosine, linear",
    "schedule=null": "schedule=null: no such option; there are cosine, linear",
    "trainer.steps=abc": 'trainer.steps: expected a whole number, got "abc"',
    "trainer.steps=1.5": "trainer.steps: expected a whole number, got 1.5",
    "trainer=5": "trainer=5: no such option; there are default",
    "~trainer.steps": "trainer.steps: missing",
    "trainer.steps=[": r"cannot read 'trainer.steps=\['",
    "trainer.precision=fp8": "trainer.precision: expected one of auto, fp32, bf16, fp16",
    "data=folder": "data.path: must be given",
    "schedule=linear schedule.s=1": "schedule.s: no such option",
    "hydra.run.dir=x": "hydra.run.dir: has no effect here; output_dir and name",
    "model._target_=os.system": "model.image_size: no such option",
    # found once torch is there
    "schedule.timesteps=0": "schedule: timesteps must be at least 1, got 0",
    "schedule=linear schedule.beta_end=1.5": r"schedule: beta_end must lie in \(0, 1\), got 1.5",
    "data.image_size=15": "model: image_size 15 cannot be halved 2 times.*12 or 16 would do",
    "model.in_channels=3": r"model: cannot take images of shape \[1, 16, 16\]",
    "sampler.steps=5000": "sampler: steps must be between 1 and the schedule's 1000 timesteps, got 5000",
    "data=folder data.path=nowhere": "data: no such folder of images: .*nowhere",
    "data=folder data.path=empty": "data: no images in .*empty",
    "data=folder data.path=broken": "data: 1 images in .* cannot be read:.*broken/bad.png",
    "data=cifar10": r"data: .*data/cifar-10-python.tar.gz is missing: set data.download=true",
    "output_dir=file": "output_dir: file/digits/.*: Not a directory",
    "resume=nowhere": "resume: there is no run directory nowhere",
    "name='a=b'": "name: may hold letters",
    "experimen=quickstart": r"experimen: no such option \(did you mean 'experiment'\?\)",
    "schedule=": "schedule=: no such option; there are cosine, linear",
    "+prediction._partial_=true": "prediction._partial_: cannot be true",
    "model.base_channels=100000000": "model: ",
    "model.image_size=32": "model: image_size is 32, but the data's images are 16 x 16 x 1",
}


def assert_one_message(done: subprocess.CompletedProcess, program: str, says: str) -> None:
    assert done.returncode == 2, done.stderr
    assert re.search(rf"^ddpm-{program}: .*{says}", done.stderr, re.DOTALL), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_starts_nothing(mistake: str, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = train(*mistake.split(), cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path.parent / "cache"))
    assert_one_message(done, "train", MISTAKES[mistake])
    assert sorted(tmp_path.rglob("*")) == before


SAMPLE_MISTAKES = {
    "": "ckpt: must be given, as ckpt=...",
    "ckpt=nowhere": "ckpt: nowhere does not exist",
    "ckpt=file": "ckpt: file is neither a run directory nor a checkpoint nor an EMA file",
    "ckpt=RUN n=0": "n: must be at least 1, got 0",
    "ckpt=RUN sampler=ddim variance=fixed_small": "variance: has no effect with sampler=ddim",
    "ckpt=RUN sampler.steps=21": "sampler: steps must be between 1 and the schedule's 20 timesteps, got 21",
    "ckpt=RUN save=npy": r"save: expected one of grid, images, npz \(did you mean 'npz'\?\)",
    "ckpt=RUN out=file": "out: file: File exists",
    "ckpt=RUN sampler.variance=fixed_large": "sampler.variance: ",
    "ckpt=RUN sede=3": r"sede: no such option \(did you mean 'seed'\?\)",
    "ckpt=RUN device=tpu": "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'",
}


@pytest.mark.parametrize("mistake", SAMPLE_MISTAKES)
def test_a_mistake_in_sampling_gets_one_message(mistake: str, tmp_path: Path, trained):
    (tmp_path / "file").touch()
    done = sample(*mistake.replace("RUN", str(trained[0])).split(), cwd=tmp_path)
    assert_one_message(done, "sample", SAMPLE_MISTAKES[mistake])


def test_a_damaged_checkpoint_is_named(home: Path, tmp_path: Path):
    done = train(*TINY, "trainer.steps=1", "trainer.preview_every=0", f"output_dir={tmp_path}", "name=x", cwd=home)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("ema.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for done in (sample(f"ckpt={file.parent}", cwd=home), train(f"resume={file.parents[2]}", cwd=home)):
        assert done.returncode == 2
        assert "ema.safetensors is damaged: its SHA-256" in done.stderr


def test_a_read_only_output_directory_is_named(tmp_path: Path):
    """The system's answer is put in place of the system: containers run their tests as root, who may write anywhere."""
    code = (
        "import errno, pathlib, sys\n"
        "make = pathlib.Path.mkdir\n"
        "def mkdir(path, *a, **k):\n"
        "    if 'outputs' not in str(path): return make(path, *a, **k)\n"
        "    raise OSError(errno.EROFS, 'Read-only file system', str(path))\n"
        "from ddpm_cli.train import main; pathlib.Path.mkdir = mkdir; main()"
    )
    command = [sys.executable, "-c", code, *TINY_RUN]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert_one_message(done, "train", "output_dir: outputs/digits/.*: Read-only file system")
    assert_one_message(train(*TINY_RUN, "output_dir=/proc/x", cwd=tmp_path), "train", "output_dir: /proc")


def test_a_full_disk_is_named_before_the_run_and_in_it(tmp_path: Path):
    """A limit on the size of files stands for a disk that fills up while a checkpoint is written."""
    code = (
        "import resource, shutil, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "if sys.argv.pop(1) == 'before':\n"
        "    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, 1000)\n"
        "else:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "from ddpm_cli.train import main; main()"
    )
    command = [sys.executable, "-c", code]
    before, during = (
        subprocess.run([*command, when, *TINY_RUN], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        for when in ("before", "during")
    )
    assert_one_message(before, "train", f"output_dir: {tmp_path} has 0 MB free, the run's checkpoints take")
    assert during.returncode == 1
    assert re.match(r"ddpm-train: step 2: .*safetensors.*; earlier checkpoints are untouched", during.stderr)
    assert "Traceback" not in during.stderr
    (directory,) = (tmp_path / "outputs" / "digits").iterdir()
    assert list((directory / "checkpoints").iterdir()) == [], "nothing half written is left"


@pytest.mark.parametrize("mistake", ["trainer.steps=abc", "shedule=linear"])
def test_the_traceback_is_there_for_who_wants_it(mistake: str, tmp_path: Path):
    done = train(mistake, cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_users_broken_yaml_gets_one_message(tmp_path: Path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text("a: [1\nb: }")
    done = train("trainer.steps=1", "--config-dir", "mine", "experiment=x", cwd=tmp_path)
    assert_one_message(done, "train", "no valid YAML.*x.yaml")


def test_an_option_that_ours_would_hide_is_refused(tmp_path: Path):
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "cosine.yaml").write_text("_target_: ddpm_cli.diffusion.schedule.linear\n")
    done = train("--config-dir", "mine", "schedule=cosine", cwd=tmp_path)
    assert_one_message(done, "train", "mine/schedule/cosine.yaml: would be passed over for our own schedule=cosine")


def test_a_folder_that_has_moved_can_be_resumed(tmp_path: Path):
    (tmp_path / "pics=1,2").mkdir()
    for i in range(9):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp_path / "pics=1,2" / f"{i}.png")
    folder = [
        "data=folder",
        "data.path='pics=1,2'",
        "data.image_size=16",
        "model=unet_16",
        *TINY,
        "model.attention_resolutions=[8]",
    ]
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = train(*folder, "trainer.steps=2", cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "outputs" / "pics_1_2").iterdir()
    (tmp_path / "pics=1,2").rename(tmp_path / "elsewhere")
    lost = train(f"resume={directory}", "trainer.steps=3", cwd=tmp_path, **environment)
    assert_one_message(lost, "train", "data: no such folder of images: .*pics=1,2")
    found = train(f"resume={directory}", "trainer.steps=3", "data.path=elsewhere", cwd=tmp_path, **environment)
    assert found.returncode == 0, found.stderr
    assert "resumed  at step 2" in found.stdout
    (tmp_path / "elsewhere" / "0.png").unlink()
    fewer = train(f"resume={directory}", "trainer.steps=4", "data.path=elsewhere", cwd=tmp_path, **environment)
    assert_one_message(fewer, "train", "data: the run was trained on 9 images, there are now 8")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_resumes_and_stops_when_it_diverges(precision: str, tmp_path: Path):
    half = [*TINY, f"trainer.precision={precision}", "trainer.preview_every=0"]
    done = train(*half, "trainer.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "outputs" / "digits").iterdir()
    resumed = train(f"resume={directory}", "trainer.steps=4", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    diverged = train(*half, "trainer.steps=50", "optimizer.lr=1e10", "trainer.grad_clip=null", "name=x", cwd=tmp_path)
    assert diverged.returncode == 3
    assert re.match(r"ddpm-train: the (loss|gradient|norm).* is not finite", diverged.stderr)
    assert not list((tmp_path / "outputs" / "x").glob("*/checkpoints/*"))


# Help, start-up, other ways in ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["train", "sample"])
def test_help_explains_itself(program: str, tmp_path: Path):
    done = run(program, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count(f"  ddpm-{program} ") + done.stdout.count(f"  ddpm-{program}\n") >= 5, "five examples"
    for says in ("sampler: ddim, ddpm", "variance: fixed_large, fixed_small"):
        assert says in done.stdout
    if program == "train":
        assert "schedule: cosine, linear" in done.stdout
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
        "    return ImageSet(pixels, 'stripes', flip=False)\n"
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
    wrong = train(*chosen, "schedule.bta=1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert_one_message(wrong, "train", r"schedule.bta: no such option \(did you mean 'beta'\?\)")
    (run_directory,) = (tmp_path / "outputs" / "stripes").iterdir()
    refused = run("sample", f"ckpt={run_directory}", "n=1", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert_one_message(refused, "sample", "schedule._target_: mine.constant is not on the list")
    trusted = run(
        "sample", f"ckpt={run_directory}", "n=1", "trust=[mine.constant]", cwd=tmp_path, PYTHONPATH=str(tmp_path)
    )
    assert trusted.returncode == 0, trusted.stderr


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


def test_interrupting_a_run_says_how_to_go_on(tmp_path: Path):
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_cli.train", *TINY, "trainer.steps=100000", "trainer.log_every=5"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "step 5/" in line:
            break
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "ddpm-train resume=outputs/digits/" in out
    assert "Traceback" not in error
