"""`ddpm-import` as a user runs it, and what the other commands make of what comes out."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import assert_one_message, run, sample, train
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
from other_networks import of_diffusers, saved

from ddpm_cli import load
from ddpm_cli.diffusion.samplers import DDIM, Ancestral
from ddpm_cli.diffusion.threshold import Static

FEW = {"num_train_timesteps": 20, "beta_start": 0.01, "beta_end": 0.3}
SHOWN = ["n=4", "save=npz"]


def import_(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return run("import_model", *arguments, cwd=cwd, **options)


def pixels(place: Path) -> np.ndarray:
    with np.load(place / "samples.npz") as found:
        return found["arr_0"]


@pytest.fixture
def imported(tmp_path: Path) -> Path:
    """A run made of a pipeline of diffusers, in the directory `model` beside it, that does not clip."""
    saved(tmp_path / "model", scheduler=DDPMScheduler(clip_sample=False, variance_type="fixed_large", **FEW))
    done = import_("source=model", "out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_a_model_comes_in_and_is_drawn_from(imported: Path):
    home = imported.parent
    done = import_("source=model", "out=again", cwd=home)
    assert done.stdout.splitlines() == [
        "source   model, diffusers' UNet2DModel",
        "images   8 x 8 x 3",
        "network  UNet, 45,259 parameters, levels of 8, 4 pixels, attention at 4",
        "noise    schedule=linear, prediction=eps, variance=fixed_large, threshold=none",
        "note     with fewer steps than T DDPMScheduler visits timesteps by 'leading', which is sampler.spacing of "
        "ddpm-sample",
        "saved    again/checkpoints/step_00000000",
        "sample   ddpm-sample ckpt=again",
        "evaluate ddpm-eval ckpt=again reference=images reference.path=DIR",
        "train    ddpm-train init=again",
    ]
    files = sorted(path.relative_to(imported).as_posix() for path in imported.rglob("*") if path.is_file())
    names = ("checkpoint.json", "ema.safetensors", "manifest.json", "training.safetensors")
    assert files == [*(f"checkpoints/step_00000000/{name}" for name in names), "config.yaml", "run.json"]
    drawn = sample("ckpt=run", *SHOWN, "out=a", cwd=home)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.startswith("run: step 0, ema weights")
    assert pixels(home / "a").shape == (4, 8, 8, 3)
    for other in ("weights=model", "threshold=none", "variance=fixed_large"):
        assert sample("ckpt=run", *SHOWN, other, f"out={other}", cwd=home).returncode == 0
        assert np.array_equal(pixels(home / other), pixels(home / "a")), other


def test_its_threshold_is_drawn_with_unless_another_is_chosen(imported: Path):
    home = imported.parent
    for name, options in {"own": [], "static": ["threshold=static"], "none": ["threshold=none"]}.items():
        assert sample("ckpt=run", *SHOWN, *options, f"out={name}", cwd=home).returncode == 0
    assert np.array_equal(pixels(home / "own"), pixels(home / "none"))
    assert not np.array_equal(pixels(home / "own"), pixels(home / "static"))
    done = import_("source=model", "out=clipped", "threshold=static", cwd=home)
    assert "threshold=static" in done.stdout
    assert sample("ckpt=clipped", *SHOWN, "out=clipped_here", cwd=home).returncode == 0
    assert np.array_equal(pixels(home / "clipped_here"), pixels(home / "static"))


@torch.no_grad()
def test_the_pipelines_of_diffusers_draw_the_same_pictures(tmp_path: Path):
    """From the same noise, by all steps of DDPM and ten of DDIM; theirs come as numbers in [0, 1], channels last."""
    network = saved(tmp_path / "model", scheduler=DDPMScheduler(variance_type="fixed_large", **FEW))
    assert import_("source=model", "out=run", cwd=tmp_path).returncode == 0
    ddpm, (channels, height, width), _, config = load(tmp_path / "run")
    assert config["threshold"] == {"_target_": "ddpm_cli.diffusion.threshold.Static"}
    denoise, shape = ddpm.denoiser(threshold=Static()), (2, channels, height, width)
    few = {"batch_size": 2, "output_type": "np"}
    large = DDPMScheduler(variance_type="fixed_large", **FEW)
    like_ours = {"num_inference_steps": 10, "use_clipped_model_output": True, "eta": 0.0}
    for sampler, pipeline, how in (
        (Ancestral(variance=ddpm.variance), DDPMPipeline(network, large), {"num_inference_steps": 20}),
        (DDIM(steps=10, spacing="leading"), DDIMPipeline(network, DDIMScheduler(**FEW)), like_ours),
    ):
        pipeline.set_progress_bar_config(disable=True)
        expected = pipeline(generator=torch.Generator().manual_seed(0), **few, **how).images
        noise = partial(torch.randn, shape, generator=torch.Generator().manual_seed(0))
        walk = sampler.solve(denoise, ddpm.schedule, sampler.times(ddpm.schedule), noise(), noise)
        (last,) = deque(walk, maxlen=1)
        found = (last / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        assert expected.std() > 0.05
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_labels_come_along(tmp_path: Path):
    saved(tmp_path / "model", scheduler=DDPMScheduler(**FEW), num_class_embeds=3)
    done = import_("source=model", "out=run", cwd=tmp_path)
    assert "3 classes" in done.stdout, done.stderr
    done = sample("ckpt=run", "n=2", "classes=all", "out=a", "save=npz", cwd=tmp_path)
    assert "classes: 0, 1, 2" in done.stdout, done.stderr
    rows = pixels(tmp_path / "a")
    assert rows.shape == (6, 8, 8, 3)
    assert_one_message(sample("ckpt=run", "classes=[3]", cwd=tmp_path), "sample", "classes: the network knows 0 to 2")


def test_a_learned_variance_comes_along(tmp_path: Path):
    saved(tmp_path / "model", scheduler=DDPMScheduler(variance_type="learned_range", **FEW), out_channels=6)
    assert "variance=learned_range" in import_("source=model", "out=run", cwd=tmp_path).stdout
    assert sample("ckpt=run", *SHOWN, "out=a", cwd=tmp_path).returncode == 0
    refused = import_("source=model", "out=other", "variance=fixed_small", cwd=tmp_path)
    assert_one_message(refused, "import", "variance: the network predicts a variance too; leave it out")
    saved(tmp_path / "plain", scheduler=DDPMScheduler(variance_type="learned_range", **FEW))
    refused = import_("source=plain", "out=other", cwd=tmp_path)
    assert_one_message(refused, "import", "variance: the network predicts no variance; choose fixed_small")


def test_what_no_file_says_is_chosen(tmp_path: Path):
    of_diffusers(sample_size=None).save_pretrained(tmp_path / "model")
    done = import_("source=model", "out=run", cwd=tmp_path)
    assert_one_message(done, "import", "source: its files do not say the size of the images; set image_size=64")
    done = import_("source=model", "out=run", "image_size=[16,8]", cwd=tmp_path)
    assert_one_message(done, "import", "schedule: model does not say it; choose schedule=linear, cosine or another")
    done = import_("source=model", "out=run", "image_size=16", "schedule=cosine", cwd=tmp_path)
    assert_one_message(done, "import", "prediction: model does not say it; choose prediction=eps, x0 or v")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    chosen = ["image_size=[16,8]", "schedule=linear", "schedule.timesteps=20", "prediction=v", "threshold=dynamic"]
    done = import_("source=model", "out=run", *chosen, cwd=tmp_path)
    assert "noise    schedule=linear, prediction=v, variance=fixed_small, threshold=dynamic" in done.stdout, done.stderr
    assert "note     variance=fixed_small is used, as no file says it" in done.stdout
    assert sample("ckpt=run", *SHOWN, "out=a", cwd=tmp_path).returncode == 0
    assert pixels(tmp_path / "a").shape == (4, 16, 8, 3)


# What the other commands make of it -----------------------------------------------------------------------------------


def test_evaluating_asks_for_images_to_compare_with(imported: Path):
    home = imported.parent
    done = run("eval", "ckpt=run", "n=8", cwd=home)
    assert_one_message(
        done, "eval", "ckpt: the model was imported, and its training data is not known. To compare .*set reference="
    )
    assert sample("ckpt=run", "n=8", "save=images", "sampler.steps=10", "out=images", cwd=home).returncode == 0
    others = ["reference=images", "reference.path=images/images", "features=pixels", "metrics=[fd]", "sampler.steps=10"]
    done = run("eval", "ckpt=run", "n=8", "batch_size=8", *others, cwd=home)
    assert done.returncode == 0, done.stderr
    (record,) = (imported / "eval").glob("*.json")
    assert '"threshold": "none"' in record.read_text(), "drawn with its own"


def test_training_goes_on_by_init_and_by_nothing_else(imported: Path):
    home = imported.parent
    for key in ("resume", "fork"):
        done = train(f"{key}=run", "trainer.steps=5", cwd=home)
        assert_one_message(done, "train", f"{key}: run/checkpoints/step_00000000 was imported: it has weights, but no")
        assert "init=run starts a new run from them" in done.stderr
    assert run("compare", "run", cwd=home).returncode == 0


# Mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "": "(source|out): must be given",
    "source=model": "out: must be given, as out=...",
    "source=none out=new": "source: none does not exist",
    "source=model out=model": "out: model exists already, and nothing is overwritten; choose another directory",
    "source=model out=''": "out: must name a directory",
    "source=model out=file/new": "out: .*Not a directory",
    "source=file out=new": r"source: file is neither a file of tensors \(.safetensors, .bin",
    "source=empty out=new": "source: empty holds no known model",
    "source=model out=new download=true": "download: has no effect, model is on this machine",
    "source=x.y.z out=new download=true": "source: x.y.z is neither a path nor a model's name on the Hub, OWNER/NAME",
    "source=model out=new image_size=9": "source: ours cannot be its network: model: image_size 9 cannot be halved",
    "source=model out=new image_size=0": r"image_size: must be at least 1, or \[height, width\] of .*, got 0",
    "source=model out=new image_size=[]": r"image_size: must be at least 1, or \[height, width\] of .*, got \[\]",
    "source=model out=new preset=adm_64 preset.dropout=1": r"preset: dropout must lie in \[0, 1\), got 1",
    "source=model out=new preset=adm_64 preset.diffusion_steps=1e6": "preset.diffusion_steps: .* beyond 100000",
    "source=model out=new image_size=big": "image_size: expected a whole number or a list of whole numbers or null",
    "source=model out=new preset=adm_64": "source: preset= has no effect: diffusers' files say",
    "source=model out=new preset=adm_65": "preset=adm_65.*adm_64",
    "source=model out=new schedule.betas=[0.1]": "schedule",
    "source=model out=new schedule=linear schedule.zero_terminal_snr=true": "zero_terminal_snr|pure noise",
    "source=model out=new hydra.run.dir=there": "hydra.run.dir: out= names the directory already",
    "source=model out=new sauce=3": r"sauce: no such option \(did you mean 'source'\?\)",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_writes_nothing(mistake: str, tmp_path: Path):
    saved(tmp_path / "model")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    done = import_(*mistake.replace("''", "").split(), cwd=tmp_path)
    assert_one_message(done, "import", MISTAKES[mistake])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_ours_is_sent_to_the_options_that_take_it(imported: Path):
    home = imported.parent
    for source in ("run", "run/checkpoints/step_00000000", "run/checkpoints/step_00000000/ema.safetensors"):
        done = import_(f"source={source}", "out=other", cwd=home)
        says = f"source: {source} is a model of ddpm-cli already: use it with ckpt= or init="
        assert_one_message(done, "import", says)


def test_several_processes_are_refused(tmp_path: Path):
    saved(tmp_path / "model")
    done = import_("source=model", "out=new", cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert_one_message(done, "import", "ddpm-import runs in one process, torchrun has started 2")
    done = import_("source=model", "out=new", cwd=tmp_path, SLURM_STEP_NUM_TASKS="4", SLURM_PROCID="0")
    assert_one_message(done, "import", "srun has started 4 processes .* start ddpm-import once")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["sauce=x"], ["image_size=abc"], []])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str], tmp_path: Path):
    code = (
        f"import sys; sys.argv = ['ddpm-import', *{arguments!r}]\n"
        "from ddpm_cli.import_model import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(17 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_explains_itself(tmp_path: Path):
    done = import_("--help", cwd=tmp_path)
    assert done.stdout.count("  ddpm-import ") >= 5, "five examples"
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "preset=null" in done.stdout
    assert "adm_64" in done.stdout


# Ended early ----------------------------------------------------------------------------------------------------------

FAULT = (
    "import errno, os, signal, ddpm_cli.io.durable as durable\n"
    "import ddpm_cli.checkpoint.write as write\n"
    "def fail(*given, **more):\n    {what}\n"
    "durable.write_new = fail\n"
    "import sys; sys.argv[0] = 'ddpm-import'\n"
    "from ddpm_cli.import_model import main\nmain()\n"
)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path):
    saved(tmp_path / "model")
    code = FAULT.format(what="raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))")
    done = import_("source=model", "out=deep/new", cwd=tmp_path, code=code)
    assert done.returncode == 1
    assert done.stderr == "ddpm-import: deep/new: No space left on device. Nothing has been written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_while_it_writes_it_leaves_no_run_and_the_same_command_makes_it(tmp_path: Path):
    saved(tmp_path / "model")
    done = import_(
        "source=model", "out=new", cwd=tmp_path, code=FAULT.format(what="os.kill(os.getpid(), signal.SIGKILL)")
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "new").exists()
    done = import_("source=model", "out=new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "new"]
    assert sample("ckpt=new", "n=1", "sampler.steps=2", cwd=tmp_path).returncode == 0


# The Hub --------------------------------------------------------------------------------------------------------------

NAME = "somebody/ddpm-tiny"


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """An environment in which the Hub's cache is empty, and nobody answers."""
    return {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:9",
    }


def _cache(model: Path, environment: dict[str, str]) -> None:
    """Lay a model down as the Hub's library keeps what it has fetched: files are links to blobs."""
    repository = Path(environment["HF_HUB_CACHE"], f"models--{NAME.replace('/', '--')}")
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"{number:040}", snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))


def test_a_name_of_the_hub_is_found_in_its_cache(tmp_path: Path, hub: dict[str, str]):
    saved(tmp_path / "model", scheduler=DDPMScheduler(**FEW))
    assert import_("source=model", "out=expected", cwd=tmp_path, **hub).returncode == 0
    _cache(tmp_path / "model", hub)
    done = import_(f"source={NAME}", "out=run", cwd=tmp_path, fresh=True, **hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"source   {NAME}, diffusers' UNet2DModel")
    weights = "checkpoints/step_00000000/training.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "expected" / weights).read_bytes()
    assert json.loads((tmp_path / "run/checkpoints/step_00000000/checkpoint.json").read_text())["config"]["imported"]


def test_without_a_network_it_is_said_which_files_to_bring(tmp_path: Path, hub: dict[str, str]):
    files = r"from https://huggingface.co/somebody/ddpm-tiny/tree/main config.json, scheduler_config.json and"
    done = import_(f"source={NAME}", "out=run", cwd=tmp_path, fresh=True, **hub)
    assert_one_message(done, "import", "source: somebody/ddpm-tiny does not exist on this machine.* set download=true")
    assert files in done.stderr
    done = import_(f"source={NAME}", "out=run", "download=true", cwd=tmp_path, fresh=True, **hub)
    assert_one_message(done, "import", "download: cannot download somebody/ddpm-tiny: ")
    assert files in done.stderr
    assert not (tmp_path / "run").exists()


def test_without_the_hubs_library_it_is_said_how_to_get_it(tmp_path: Path):
    code = "import sys; sys.modules['huggingface_hub'] = None; sys.argv[0] = 'ddpm-import'\n"
    code += "from ddpm_cli.import_model import main\nmain()\n"
    done = import_(f"source={NAME}", "out=run", "download=true", cwd=tmp_path, code=code)
    assert_one_message(done, "import", r"download: huggingface_hub is not installed: pip install 'ddpm-cli\[hub\]'")
    done = import_(f"source={NAME}", "out=run", cwd=tmp_path, code=code)
    assert_one_message(done, "import", r"source: somebody/ddpm-tiny does not exist on this machine")
