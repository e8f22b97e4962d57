"""`ddpm-export` as a user runs it: which weights, what lies in the directory, its model card, and how it ends early."""

import json
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY_RUN, assert_one_message, only, run, start, train, wait_for
from exports import LINEAR, OURS, export, saved_run
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from written_runs import figure, write_evaluation

from ddpm_cli import load
from ddpm_cli.conversion.diffusers_unet import to_options, to_ours, with_null_label
from ddpm_cli.diffusion.guidance import Guidance
from ddpm_cli.io.whole_directory import made_whole

FILES = [
    "README.md",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]
HOLDING = (  # in the middle of writing, until it is killed
    "import pathlib, time, ddpm_cli.conversion.diffusers_directory as d, ddpm_cli.export_model as m\n"
    "real = d._write_json\n"
    "def write(file, *more):\n"
    "    real(file, *more)\n"
    "    pathlib.Path('writing').touch()\n"
    "    time.sleep(60)\n"
    "d._write_json = write\n"
    "m.main()\n"
)


def exported(*arguments: object, cwd: Path, **options: Any):
    return run("export_model", *map(str, arguments), cwd=cwd, **options)


def files_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def weights_in(out: Path) -> dict[str, Tensor]:
    """Under our names."""
    theirs = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    return to_ours(theirs, with_null_label(to_options(json.loads((out / "unet" / "config.json").read_text())), theirs))


def code_in(out: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)


def run_code(out: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the names stand for after a block of the model card has been run where it says."""
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def posthoc(tmp_path_factory) -> Path:
    """A finished run of four steps with two averages, and what others are made of. Not to be changed."""
    place = tmp_path_factory.mktemp("posthoc")
    options = ["ema=posthoc", "ema.decays=[0.9,0.5]", "ema.posthoc=[0.05,0.1]", "trainer.preview_every=0"]
    done = train(*TINY_RUN, *options, cwd=place)
    assert done.returncode == 0, done.stderr
    (directory,) = (place / "outputs" / "digits").iterdir()
    (directory / "best.json").write_text('{"step": 2}')
    return directory


def test_a_finished_run_becomes_a_directory_of_diffusers(trained, tmp_path: Path, monkeypatch):
    """diffusers is not looked for; the code in the model card runs as it stands."""
    directory, _ = trained
    without = "import sys; sys.modules['diffusers'] = None; import ddpm_cli.export_model as m; m.main()"
    done = exported(f"ckpt={directory}", "out=new/out", cwd=tmp_path, code=without)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert said[0].startswith(f"model    {directory}: step 4, the EMA of decay 0.995")
    assert re.fullmatch(r"network  UNet2DModel, [\d,]+ parameters", said[1])
    assert said[2:] == ["noise    DDPMScheduler, sample, fixed_small", "saved    new/out"]
    out = tmp_path / "new" / "out"
    assert files_in(tmp_path / "new") == [f"out/{name}" for name in FILES]
    (code,) = code_in(out)
    images = run_code(out, code, monkeypatch)["images"]
    assert [image.size for image in images] == [(16, 16)] * 4
    assert np.array_equal(np.asarray(Image.open(out / "3.png")), np.asarray(images[3]))


@pytest.mark.parametrize("threshold", ["Static", "Dynamic", "Unbounded"])
def test_the_card_has_shorter_ways_for_many_steps(threshold: str, tmp_path: Path, monkeypatch):
    run_directory = saved_run(tmp_path / "run", schedule=LINEAR | {"timesteps": 100})
    out = export(run_directory, tmp_path / "out", threshold={"_target_": f"{OURS}.threshold.{threshold}"})
    _, ddim, solver = code_in(out)
    assert ("num_inference_steps=50, use_clipped_model_output=True" in ddim) == (threshold != "Unbounded")
    assert ("config, thresholding=True, sample_max_value=1.0)" in solver) == (threshold == "Static")
    for code in (ddim, solver):
        assert len(run_code(out, code, monkeypatch)["images"]) == 4
    kept = run_code(out, solver, monkeypatch)["pipeline"].scheduler.config
    assert (kept.thresholding, kept.sample_max_value > 1) == (threshold != "Unbounded", threshold == "Dynamic")


@pytest.mark.parametrize(
    ("ckpt", "arguments", "options"),
    [
        ("", [], {}),
        ("best.json", [], {}),
        ("checkpoints/step_00000002", ["weights=model"], {"weights": "model"}),
        ("checkpoints/step_00000004/ema.safetensors", [], {}),
        ("", ["weights=ema_0.5"], {"weights": "ema_0.5"}),
        ("", ["ema_length=0.08"], {"ema_length": 0.08}),
    ],
)
def test_any_weights_of_a_run_go_out_bit_for_bit(
    ckpt: str, arguments: list[str], options: dict[str, Any], posthoc: Path, tmp_path: Path
):
    place = posthoc / ckpt
    done = exported(f"ckpt={place}", "out=out", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, found = load(place, **options), weights_in(tmp_path / "out")
    state = expected.ddpm.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert f"| weights | after {expected.step} steps, the " in (tmp_path / "out" / "README.md").read_text()


def test_the_card_draws_of_each_label_what_we_draw(labelled: Path, tmp_path: Path, monkeypatch):
    done = exported(f"ckpt={labelled}", "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (code,) = code_in(tmp_path / "out")
    ddpm = load(labelled).ddpm
    for scale in (1.0, 3.0):
        changed = code.replace("scale = 1.0", f"scale = {scale}")
        assert changed.count(f"scale = {scale}") == 1
        x = run_code(tmp_path / "out", changed, monkeypatch)["x"]
        expected = ddpm.sample(
            4,
            16,
            1,
            show_progress=False,
            generator=torch.Generator().manual_seed(0),
            labels=torch.arange(4),
            guidance=Guidance(scale=scale),
        )
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
    assert Image.open(tmp_path / "out" / "3.png").size == (16, 16)
    assert "| labels | 0 to 9; 10: no label |" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_network_that_needs_labels(tmp_path: Path, monkeypatch):
    """In colour, with a learned variance, and named by texts that would break a table."""
    names = ("a|b", "line\nbreak", "<b>")
    run_directory = saved_run(
        tmp_path / "run", num_classes=3, null_label=False, in_channels=3, variance="LearnedRange", classes=names
    )
    out = export(run_directory, tmp_path / "out")
    card = (out / "README.md").read_text()
    assert r"| labels | 0: a\|b, 1: line\nbreak, 2: &lt;b> |" in card
    assert "scale" not in card
    assert "ddpm-export variance=fixed_small" in card
    (code,) = code_in(out)
    labels = torch.tensor([0, 1, 2, 0])
    expected = load(run_directory).ddpm.sample(
        4, 8, 3, show_progress=False, generator=torch.Generator().manual_seed(0), labels=labels
    )
    torch.testing.assert_close(run_code(out, code, monkeypatch)["x"], expected, rtol=0, atol=1e-4)
    assert Image.open(out / "3.png").mode == "RGB"


def test_the_card_says_where_it_comes_from(trained, tmp_path: Path):
    """The commands, the loss, and evaluations of just these weights."""
    directory, _ = trained
    for name, changes in {
        "these": {},
        "of_another_step": {"step": 2},
        "of_other_weights": {"weights": "model"},
        "of_a_length": {"ema_length": 0.1},
    }.items():
        file = write_evaluation(directory, name, [figure(f"fd_{name}", 12.345, standard_error=0.067)], step=4)
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"model": record["model"] | changes}))
    done = exported(f"ckpt={directory}", "out=out dir", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out dir" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\npipeline_tag: unconditional-image-generation\n")
    assert "\n# out dir\n" in card
    assert re.search(r"\n    ddpm-train .*model\.base_channels=8.*\n", card)
    assert f"\n    ddpm-export ckpt={directory} 'out=out dir'\n" in card
    assert "| trained on | digits, 1,797 images |" in card
    assert re.search(r"\n\| training loss \| \d\.\d+ \| `loss/mean` at step 4 \|\n", card)
    assert re.findall(r"^\| (fd_\w+) \| (.*?) \|", card, re.MULTILINE) == [("fd_these", "12.35 +- 0.067")]
    assert "license:" not in card.split("---")[1]


def test_it_comes_back_as_a_run_that_draws_the_same(tmp_path: Path):
    """Out and in again, by the commands: network, schedule, prediction, variance and threshold."""
    schedule = {"_target_": f"{OURS}.schedule.cosine", "timesteps": 20}
    first = saved_run(tmp_path / "first", schedule=schedule, prediction="Velocity", variance="FixedLarge")
    threshold = {"_target_": f"{OURS}.threshold.Dynamic", "quantile": 0.9}
    export(first, tmp_path / "out", threshold=threshold)
    done = run("import_model", "source=out", "out=second", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pixels = []
    for name, more in (("first", ["threshold=dynamic", "threshold.quantile=0.9"]), ("second", [])):
        done = run("sample", f"ckpt={name}", "n=4", "save=npz", f"out=of_{name}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        pixels.append(np.load(tmp_path / f"of_{name}" / "samples.npz")["arr_0"].astype(int))
    assert abs(pixels[0] - pixels[1]).max() <= 1
    done = exported("ckpt=second", "out=again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "again" / "README.md").read_text()
    assert "read by `ddpm-import` and written by `ddpm-export`" in card
    assert f"\n| weights | {load(tmp_path / 'second').config['imported']} |\n" in card
    one, other = (tmp_path / name for name in ("out", "again"))
    assert (one / FILES[-1]).read_bytes() == (other / FILES[-1]).read_bytes()
    for name in FILES[1:-1]:
        found, expected = (json.loads((place / name).read_text()) for place in (other, one))
        if "trained_betas" in expected:
            assert np.allclose(found.pop("trained_betas"), expected.pop("trained_betas"), rtol=1e-12, atol=0)
        assert found == expected, name


# Mistakes -------------------------------------------------------------------------------------------------------------

MISTAKES = {
    "": "ckpt: must be given, as ckpt=...",
    "ckpt=RUN": "out: must be given, as out=...",
    "ckpt=nowhere out=x": "ckpt: nowhere does not exist",
    "ckpt=RUN out=file": "out: file exists already, and nothing is overwritten; choose another directory",
    "ckpt=RUN out=RUN": "out: .* exists already",
    "ckpt=RUN out=file/x": "out: file: Not a directory",
    "ckpt=RUN out=": "out: must name a directory",
    "ckpt=RUN out=x labels=none": "labels=none: has no effect, the network was trained without labels",
    "ckpt=RUN out=x labels=some": "labels: expected one of keep, none, got",
    "ckpt=RUN out=x variance=learned_range": "variance: the network does not predict a variance",
    "ckpt=RUN out=x variance=drop": "variance=drop: no such option; choose from fixed_large, fixed_small, learned",
    "ckpt=RUN out=x threshold.quantile=0.9": "threshold.quantile: no such option",
    "ckpt=RUN out=x lables=none": r"lables: no such option \(did you mean 'labels'\?\)",
    "ckpt=RUN out=x weights=ema_0.5": "weights: this checkpoint has ema, ema_0.995",
    "ckpt=RUN out=x ema_length=0.1": "ema_length: .* has no averages to start from",
    "ckpt=RUN out=x ckpt_sha256=00": "is not the one asked for",
    "ckpt=RUN out=x hydra.run.dir=y": "hydra.run.dir: has no effect here; out= names the directory",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_nothing_is_written(mistake: str, tmp_path: Path, trained):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    done = exported(*mistake.replace("RUN", str(trained[0])).split(), cwd=tmp_path)
    assert_one_message(done, "export", MISTAKES[mistake])
    assert sorted(tmp_path.rglob("*")) == before


IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "heads that differ": (
        {"num_heads": 2, "attention_resolutions": [8, 4]},
        r"ckpt: model\.num_heads is 2, which diffusers' UNet2DModel cannot be: .*4.*8",
    ),
    "a first level that is wider": ({"channel_mults": [2, 2]}, r"ckpt: model\.channel_mults is \[2, 2\], .*cannot be"),
    "another scale of t": ({"time_scale": 10.0}, r"ckpt: model\.time_scale is 10.0, .*cannot be"),
    "no label at all": ({"num_classes": 3, "label_dropout": 1.0}, "labels=keep: .*label_dropout=1.*choose labels=none"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_what_diffusers_cannot_say_is_refused_with_the_reason(what: str, tmp_path: Path):
    options, says = IMPOSSIBLE[what]
    saved_run(tmp_path / "run", schedule=LINEAR, **options)
    assert_one_message(exported("ckpt=run", "out=out", cwd=tmp_path), "export", says)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_labels_cannot_be_left_out_of_a_network_that_always_had_them(tmp_path: Path):
    saved_run(tmp_path / "run", num_classes=3, label_dropout=0.0)
    says = r"labels=none: the network was trained with every label \(label_dropout=0\)"
    assert_one_message(exported("ckpt=run", "out=out", "labels=none", cwd=tmp_path), "export", says)
    card = (export(tmp_path / "run", tmp_path / "out") / "README.md").read_text()
    assert "| labels | 0 to 2; 3: no label, which it was not trained with |" in card
    assert "scale" not in card


def test_it_is_the_work_of_one_process(trained, tmp_path: Path):
    done = exported(f"ckpt={trained[0]}", "out=x", cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert_one_message(done, "export", "WORLD_SIZE: exporting runs in one process; start it without torchrun")


# Early ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_in_the_middle_it_leaves_nothing_under_the_name(number: signal.Signals, tmp_path: Path):
    saved_run(tmp_path / "run")
    process = start("export_model", "ckpt=run", "out=out", cwd=tmp_path, code=HOLDING)
    wait_for((tmp_path / "writing").exists, process)
    if number == signal.SIGTERM:
        busy = exported("ckpt=run", "out=out", cwd=tmp_path)
        assert_one_message(busy, "export", r"out: .*\.out\.tmp/\.lock is held by process")
    process.send_signal(number)
    _, said = process.communicate(30)
    left = {path.name for path in tmp_path.iterdir()} - {"run", "writing"}
    if number == signal.SIGTERM:
        assert process.returncode == 75
        assert "ddpm-export: SIGTERM: stopped. Nothing has been written" in said
        assert not left
    else:
        assert left == {".out.tmp"}
    done = exported("ckpt=run", "out=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "out") == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"run", "writing", "out"}


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path):
    saved_run(tmp_path / "run")
    full = (
        "import errno, os, ddpm_cli.io.durable as d, ddpm_cli.export_model as m\n"
        "real = d.write_new\n"
        "def write(path, chunks):\n"
        "    if path.name.endswith('.safetensors'):\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))\n"
        "    return real(path, chunks)\n"
        "d.write_new = write\n"
        "m.main()\n"
    )
    done = exported("ckpt=run", "out=a/b/out", cwd=tmp_path, code=full)
    assert done.returncode == 1
    assert re.fullmatch(r"ddpm-export: .*: No space left on device\. Nothing has been written\n", done.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_directory_is_made_whole_or_not_at_all(tmp_path: Path):
    final = tmp_path / "above" / "final"
    with suppress(ZeroDivisionError), made_whole(final) as directory:
        (directory / "part").touch()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with made_whole(final) as directory:
        (directory / "inner").mkdir()
        (directory / "inner" / "file").write_text("all")
        assert not final.exists()
    assert files_in(tmp_path) == ["above/final/inner/file"]
    with pytest.raises(FileExistsError), made_whole(final):
        raise AssertionError
    shutil.rmtree(final)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (tmp_path / "above" / ".final.tmp").symlink_to(elsewhere)
    with pytest.raises(FileExistsError, match="is not a directory that was being written"), made_whole(final):
        raise AssertionError
    assert (elsewhere / "kept").exists()


def test_a_sweep_exports_each(trained, tmp_path: Path):
    arguments = ["-m", f"ckpt={trained[0]}", "weights=ema,model", "out=of_${weights}"]
    done = exported(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "of_ema") == files_in(tmp_path / "of_model") == FILES
    assert only(tmp_path / "outputs" / "sweeps").is_dir()
