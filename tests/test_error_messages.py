"""What a mistake gets: one message, exit status 2, nothing started."""

import re
from pathlib import Path

import pytest
import torch
from commands import TINY, TINY_RUN, assert_one_message, only, run, sample, train
from PIL import Image
from safetensors.torch import load_file

MISTAKES = {
    "shedule=linear": r"shedule: no such option \(did you mean 'schedule'\?\)",
    "+trainer.stepz=3": r"trainer.stepz: no such option \(did you mean 'steps'\?\)",
    "optimizer.lrr=1": r"optimizer.lrr: no such option \(did you mean 'lr'\?\)",
    "++foo.bar=1": "foo: no such option",
    "schedule=cosin": r"schedule=cosin: no such option \(did you mean 'cosine'\?\); choose from cosine, custom, linear",
    "schedule=null": "schedule=null: no such option; choose from cosine, custom, linear",
    "trainer.steps=abc": 'trainer.steps: expected a whole number, got "abc"',
    "trainer.steps=1.5": "trainer.steps: expected a whole number, got 1.5",
    "trainer=5": "trainer=5: no such option; choose from default",
    "~trainer.steps": "trainer.steps: missing",
    "trainer.steps=[": r"cannot read 'trainer.steps=\['",
    "trainer.precision=fp8": "trainer.precision: expected one of auto, fp32, bf16, fp16",
    "data=folder": "data.path: must be given",
    "schedule=linear schedule.s=1": "schedule.s: no such option",
    "hydra.job.chdir=true": "hydra.job.chdir: has no effect here; a command stays in the directory",
    "-m hydra.run.dir=x": "hydra.run.dir: has no effect with -m; hydra.sweep.dir",
    "hydra.run.dir=x resume=empty": "hydra.run.dir: resume= names the directory already",
    "hydra.run.dir=${x}": "hydra.run.dir: Interpolation key 'x' not found",
    "hydra.run.dir=file": "hydra.run.dir: file: Not a directory",
    "--info nothing": "argument --info/-i: invalid choice: 'nothing'",
    "model._target_=os.system": "model.image_size: no such option",
    "hydra.output_subdir=x": "hydra.output_subdir: has no effect here",
    "hydra.sweep.dir=x": "hydra.sweep.dir: has an effect only in a sweep, with -m",
    "--fo": "unrecognized arguments: --fo; options are KEY=VALUE, without dashes",
    "trainer.steps=1 --config-dir": "--config-dir: needs a value",
    "--cfg x": "argument --cfg/-c: invalid choice: 'x'",
    "--package x": "--package: has an effect only with --cfg",
    "--mult schedule=linear,cosine": "unrecognized arguments: --mult",
    "--experimental-rerun x": "--experimental-rerun: would run code from a file; use resume=RUN_DIR to resume a run",
    "=5": "cannot read '=5': an override is KEY=VALUE",
    "schedule=a\x1b": r"cannot read 'schedule=a\\x1b': an override is KEY=VALUE, or \"KEY='VALUE'\"",
    "trainer.steps=int(x)": "cannot read 'trainer.steps=int.x.': invalid literal",
    "schedule=linear,cosine": "schedule=linear,cosine: more than one value; add -m for a run of each",
    "schedule=[nope]": "schedule=nope: no such option; choose from cosine, custom, linear",
    "+schedule=linear": r"\+schedule: already set; leave out the \+ to change it",
    "+trainer.steps=5": r"\+trainer.steps: already set; leave out the \+ to change it",
    "~trainer.steps=7": "Could not delete .* value of 'trainer.steps' is 4000 and not 7",
    "~name": "~name: there is nothing to delete",
    "trainer.steps.x=1": "trainer.steps.x: no such option; trainer.steps has none",
    "+trainer._partial_=5": "trainer._partial_: cannot be 5",
    "trust.x=1": "trust.x: no such option; trust has none",
    "trainer.steps=${nothing}": "trainer.steps: Interpolation key 'nothing' not found",
    "trainer.steps=${trainer}": "trainer.steps: Interpolation to parent node detected",
    "optimizer.weight_decay=inf": "optimizer.weight_decay: expected a finite number, got Infinity",
    "data.image_size=15": "data.image_size: 15 can be halved only 0 times, .*; use 14 or 16, or set ",
    # found once torch is there
    "schedule.timesteps=0": "schedule: timesteps must be at least 1, got 0",
    "schedule=linear schedule.beta_end=1.5": r"schedule: beta_end must lie in \(0, 1\), got 1.5",
    "model.in_channels=3": r"model: cannot take images of shape \[1, 16, 16\]",
    "sampler.steps=5000": "sampler: steps must be between 1 and the schedule's 1000 timesteps, got 5000",
    "data=folder data.path=nowhere": "data: no such folder of images: .*nowhere",
    "data=folder data.path=empty": "data: no images in .*empty",
    "data=folder data.path=broken": "data: 1 images in .* cannot be read:.*broken/bad.png",
    "data=cifar10": r"data: .*data/cifar-10-python.tar.gz is missing: set data.download=true",
    "output_dir=file": "output_dir: file/digits: Not a directory",
    "trainer.device=tpu": "trainer: device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'",
    "resume=nowhere": "resume: no such run directory: 'nowhere'",
    "resume=empty": "resume: empty holds no checkpoint",
    f"resume={'a' * 300}": "resume: a+: File name too long",
    "resume=''": "resume: no such run directory: ''",
    "resume=auto": "resume=auto: finds a run by its name; add name=NAME",
    "name='a=b'": "name: may contain only letters",
    "experimen=quickstart": r"experimen: no such option \(did you mean 'experiment'\?\)",
    "++experimen=quickstart": r"experimen: no such option \(did you mean 'experiment'\?\)",
    "schedule=": "schedule=: no such option; choose from cosine, custom, linear",
    "+prediction._partial_=true": "prediction._partial_: cannot be true",
    "model.base_channels=100000000": "model.base_channels: no checkpoint may hold this: 100000000 is beyond 4096",
    "model.num_res_blocks=1000000": "model.num_res_blocks: no checkpoint may hold this: 1000000 is beyond 16",
    # before the images are looked at, which may take hours
    "data=folder data.path=nowhere optimizer.betas=[0.9,1.0]": r"optimizer: betas must lie in \[0, 1\), got 1",
    "data=folder data.path=nowhere ema.decays=[1.0]": r"ema: decays must lie in \[0, 1\), got 1",
    "data=folder data.path=nowhere data.holdout=-1": "data: holdout must not be negative, got -1",
    "prediction=eps schedule.zero_terminal_snr=true": "prediction=eps cannot work .* choose prediction=v or",
    "variance=learned_range": "loss=simple does not train the variance .* choose loss=hybrid or loss=vlb",
    "loss=hybrid": "choose variance=learned_range, or loss=simple or loss=vlb",
    "loss=vlb weighting=min_snr": "weighting has no effect with loss=vlb",
    "variance=learned_range loss=vlb weighting=uniform model.learn_variance=false": "model: makes",
    "model.learn_variance=true": "model: learn_variance has no effect with a fixed variance",
    "schedule=custom": "schedule.betas: must be given",
    "schedule=custom schedule.betas=[0.1,2] sampler=ddpm": r"schedule: every beta must lie in \(0, 1\), got 2",
    f"schedule=custom schedule.betas=[{','.join(['0.001'] * 9000)}] sampler.steps=9": (
        "schedule.betas: too many values for a command line .8,999 values in 3 arguments."
    ),
    "trainer.log_every=2000000": "trainer.log_every: no checkpoint may hold this: 2000000 is beyond 1048576",
    "prediction=v weighting=min_snr schedule.zero_terminal_snr=true": "weighting: gives t = 999 the weight 0",
    "weighting=p2 weighting.gamma=1e6": "weighting: gives t = .* the weight 0, but sampling passes through it",
    "sampler.steps=[500,100]": "sampler: steps must start at 999, where the noise is, got 500",
    "schedule=custom schedule.betas=[x]": r'schedule.betas: expected a list of numbers, got \["x"\]',
    "weighting=min_snr weighting.gamma=0": "weighting: gamma must be positive, got 0",
    "timestep_sampler=loss_second_moment timestep_sampler.history=0": "timestep_sampler: history must be at least 1",
    "guidance=classifier_free": "guidance: no such option of this command",
    "+experiment=quickstart": r"\+experiment: already set",
    "schedule@x=cosine": r"schedule@x: no such option \(did you mean 'schedule'\?\)",
    "hydra/abc=x": "Could not override 'hydra/abc'",
    "--config-dir nowhere": "--config-dir: .*nowhere is not a directory",
    "data.num_classes=5": "data: num_classes is 5, but digits has 10 classes",
    "model.num_classes=5": "model.num_classes: the network takes 5 classes, the data has 0",
    "trainer.label_dropout=0.1": "trainer.label_dropout: has no effect without labels",
    "data.num_classes=10 trainer.label_dropout=2": r"trainer: label_dropout must lie in \[0, 1\] or be null, got 2",
    "sampler.spacing=random": "sampler.spacing: expected one of leading, trailing, linspace, log_snr, optimized, got",
    "ema.decays=[]": "ema: decays must have at least one",
    "model.image_size=32": "model: image_size is 32, but the data's images are 16 x 16 x 1",
}


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize("program", ["train", "sample", "eval"])
def test_asking_for_a_gpu_where_there_is_none_says_so(program: str, tmp_path: Path, trained):
    key = ["trainer.device=cuda"] if program == "train" else [f"ckpt={trained[0]}", "device=cuda"]
    says = "device cuda was asked for, but there is no usable CUDA device here; use auto or cpu"
    assert_one_message(run(program, *key, cwd=tmp_path), program, says)


SAMPLE_MISTAKES = {
    "": "ckpt: must be given, as ckpt=...",
    "ckpt=nowhere": "ckpt: nowhere does not exist",
    "ckpt=file": "ckpt: file is neither a run directory nor a checkpoint nor an EMA file",
    "ckpt=RUN ckpt_sha256=00ff": "ckpt: .*manifest.json is not the one asked for: its SHA-256 is",
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
    done = train(
        *TINY, "trainer.steps=1", "trainer.preview_every=0", f"output_dir={tmp_path}/damaged", "name=x", cwd=home
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "damaged").rglob("ema.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for done in (sample(f"ckpt={file.parent}", cwd=home), train(f"resume={file.parents[2]}", cwd=home)):
        assert done.returncode == 2
        assert "ema.safetensors is damaged: its SHA-256" in done.stderr


def test_a_read_only_output_directory_is_named(tmp_path: Path):
    """The system's answer is put in place of the system: containers run their tests as root, who may write anywhere."""
    code = (
        "import errno, os, sys\n"
        "make = os.mkdir\n"
        "def mkdir(path, *a, **k):\n"
        "    if 'outputs' not in str(path): return make(path, *a, **k)\n"
        "    raise OSError(errno.EROFS, 'Read-only file system', str(path))\n"
        "from ddpm_cli.train import main; os.mkdir = mkdir; main()"
    )
    done = train(*TINY_RUN, cwd=tmp_path, code=code)
    assert_one_message(done, "train", "output_dir: .*outputs: Read-only file system")
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
    before, during = (train(when, *TINY_RUN, cwd=tmp_path, code=code) for when in ("before", "during"))
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
    assert_one_message(done, "train", "mine/schedule/cosine.yaml: ddpm-cli's own schedule=cosine would be used instead")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("probe=x", r"probe: no option of this group is chosen yet; \+probe=x chooses one"),
        ("+probe=y", r"probe=y: no such option; choose from x"),
        ("+probe=x shedule=1", r"shedule: no such option \(did you mean 'schedule'\?\)"),
        (
            "model=odd model.dropout=0.2",
            r"model.dropout: not in any YAML file in use; \+model.dropout=0.2 adds it",
        ),
        ("model=odd model.dropuot=0.2", r"model.dropuot: no such option \(did you mean 'dropout'\?\); model takes"),
        ("-m model=odd,unet_16 model.dropuot=0.2", r"model.dropuot: no such option \(did you mean 'dropout'\?\)"),
    ],
)
def test_what_is_wrong_beside_options_of_ones_own_is_found(line: str, says: str, tmp_path: Path):
    for file, content in {
        "probe/x.yaml": "# @package _global_\ntrainer:\n  steps: 3\n",
        "model/odd.yaml": "_target_: ddpm_cli.models.unet.UNet\nimage_size: 16\nin_channels: 1\n",
    }.items():
        (tmp_path / "mine" / file).parent.mkdir(parents=True)
        (tmp_path / "mine" / file).write_text(content)
    assert_one_message(train("--config-dir", "mine", *line.split(), cwd=tmp_path), "train", says)


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
    assert_one_message(fewer, "train", "data: the run was trained on 9 images, but there are 8 now")


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_half_precision_runs_resumes_and_stops_when_it_diverges(precision: str, tmp_path: Path):
    half = [*TINY, f"trainer.precision={precision}", "trainer.preview_every=0"]
    done = train(*half, "trainer.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (directory,) = (tmp_path / "outputs" / "digits").iterdir()
    resumed = train(f"resume={directory}", "trainer.steps=4", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    diverged = train(*half, "trainer.steps=50", "optimizer.lr=1e10", "trainer.grad_clip=null", "name=x", cwd=tmp_path)
    assert diverged.returncode == 3
    assert re.match(r"ddpm-train: the (loss|gradient) at step \d+ is not finite", diverged.stderr)
    diverged_run = only(tmp_path / "outputs" / "x")
    assert f"ddpm-train resume={diverged_run.relative_to(tmp_path)}" in diverged.stderr
    replayed = train(f"resume={diverged_run}", cwd=tmp_path)
    assert replayed.returncode == 3
    assert replayed.stderr.partition(". ")[0] == diverged.stderr.partition(". ")[0], "exactly that step"
    for file in diverged_run.glob("checkpoints/*/*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


def test_a_path_moves_no_cursor_when_all_goes_well_either(home: Path, trained):
    foreign = home / "\x1b[2J\u202e"
    trained[0].rename(foreign)
    resumed = train(f"resume='{foreign}'", "trainer.steps=5", "trainer.preview_every=0", cwd=home)
    drawn = sample(f"ckpt='{foreign}'", "n=1", "sampler.steps=2", cwd=home)
    for done in (resumed, drawn):
        assert done.returncode == 0, done.stderr
        assert r"\x1b[2J\u202e" in done.stdout
        assert not {"\x1b", "\u202e"} & set(done.stdout + done.stderr)
    assert "\x1b" not in (foreign / "train.log").read_text()
