"""`sampler.spacing=optimized` as a user gives it: what is kept beside the checkpoint, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import TINY_RUN, assert_one_message, run, run_ranks, sample, train
from PIL import Image

from ddpm_cli.sampling import optimized

CHOSEN = ["sampler=unipc", "sampler.steps=4", "sampler.spacing=optimized"]


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory) -> Path:
    """A directory with the link `run`, in which nothing has been chosen yet."""
    place = shutil.copytree(finished[0], tmp_path_factory.mktemp("optimized") / "home")
    (directory,) = (place / "outputs" / "digits").iterdir()
    directory.rename(place / "run")
    return place


@pytest.fixture(scope="module")
def chosen_once(place: Path, tmp_path_factory) -> Path:
    """A copy in which they have been chosen for one setting."""
    home = tmp_path_factory.mktemp("chosen")
    shutil.copytree(place / "run", home / "run")
    drawn(home, "out=first")
    return home


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of it, which is the working directory."""
    shutil.copytree(place / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept(here: Path) -> list[Path]:
    return sorted((here / "run" / "timesteps").glob("*.json"))


def chosen(file: Path) -> list[int]:
    return json.loads(file.read_text())["times"]


def drawn(here: Path, *arguments: str, of_run: str = "run") -> tuple[str, list[str]]:
    """What ddpm-sample says of the timesteps, and the names of what is kept."""
    done = sample(f"ckpt={of_run}", "n=3", *CHOSEN, *arguments, cwd=here)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("timesteps: ", "they are not kept"))]
    return "\n".join(said), [file.name for file in kept(here)]


def test_the_second_command_finds_what_the_first_has_chosen_and_draws_with_it(here: Path, sample_here, monkeypatch):
    said, files = drawn(here, "out=first", "save=npz")
    (file,) = kept(here)
    times = chosen(file)
    assert times[0] == 19
    assert len(times) == 4
    assert said.startswith(f"timesteps: {', '.join(map(str, times))}, which end 0.")
    assert file.name.startswith("step_00000004-")
    assert [path.name for path in file.parent.iterdir()] == files
    monkeypatch.setattr(optimized, "_chosen", None)  # no network is asked
    for out, more in {"first": [], "second": ["seed=0"], "other_seed": ["seed=5"]}.items():
        again = sample_here("ckpt=run", "n=3", *CHOSEN, "save=npz", *more, f"out={out}")
        assert again.returncode == 0, again.stderr
        assert f", from {here}/run/timesteps/{file.name}" in again.stdout
    named = [f"sampler.steps={times}".replace(" ", "")]
    assert sample("ckpt=run", "n=3", "sampler=unipc", *named, "save=npz", "out=named", cwd=here).returncode == 0
    pixels = {out: np.load(here / out / "samples.npz")["arr_0"] for out in ("first", "second", "named", "other_seed")}
    assert np.array_equal(pixels["first"], pixels["second"])
    assert np.array_equal(pixels["first"], pixels["named"]), "they are the images of these very timesteps"
    assert not np.array_equal(pixels["first"], pixels["other_seed"])
    record = json.loads((here / "first" / "samples.json").read_text())
    assert (record["sampler"]["spacing"], record["sampler"]["steps"]) == ("optimized", times)


@pytest.mark.parametrize(
    "change",
    [
        "sampler.steps=3",
        pytest.param("sampler=ddim sampler.spacing=optimized", marks=pytest.mark.slow),
        pytest.param("weights=model", marks=pytest.mark.slow),
        pytest.param("threshold=none", marks=pytest.mark.slow),
        "ckpt=run/checkpoints/step_00000002",
        "guidance=autoguidance guidance.guide=run/checkpoints/step_00000002",
    ],
)
def test_another_setting_is_another_choice(change: str, chosen_once: Path, tmp_path: Path, monkeypatch):
    here = shutil.copytree(chosen_once, tmp_path / "here")
    monkeypatch.chdir(here)
    said, files = drawn(here, *change.split(), "out=other")
    assert "which end" in said
    assert len(files) == 2


@pytest.mark.slow
def test_damage_is_told_and_made_good(chosen_once: Path, tmp_path: Path, sample_here, monkeypatch):
    here = shutil.copytree(chosen_once, tmp_path / "here")
    monkeypatch.chdir(here)
    (file,) = kept(here)
    whole = file.read_bytes()
    other = {"setting": json.loads(whole)["setting"] | {"first": 3}, "times": [19, 3, 2, 1]}
    setting = json.loads(whole)["setting"]
    for number, content in enumerate(
        [
            b"",
            b"[" * 100_000,
            b'{"times": [19, 4, 2, 1]}',
            json.dumps(other).encode(),
            *(
                json.dumps({"setting": setting, "times": times}).encode()
                for times in ([19, 3, 4, 1], [19, 12, 6], [19, 9, 4, True])
            ),
        ]
    ):
        file.write_bytes(content)
        done = sample_here("ckpt=run", "n=1", *CHOSEN, f"out=out{number}")
        assert f"timesteps: {file} cannot be used (" in done.stdout, content
        assert file.read_bytes() == whole, "the same arguments choose the same"


def test_where_nothing_can_be_kept_they_are_chosen_and_it_is_said(here: Path):
    (newest,) = (here / "run" / "checkpoints").glob("step_00000004")
    shutil.copy(newest / "ema.safetensors", here / "alone.safetensors")
    said, _ = drawn(here, "out=alone", of_run="alone.safetensors")
    assert "they are not kept beside the checkpoint (it is not in a run), and are chosen again each time" in said
    (here / "elsewhere").mkdir()
    (here / "run" / "timesteps").symlink_to(here / "elsewhere")
    said, _ = drawn(here, "out=linked")
    assert f"they are not kept beside the checkpoint ({here}/run/timesteps is a link)" in said
    assert not any((here / "elsewhere").iterdir())
    (here / "run" / "timesteps").unlink()
    (here / "run" / "timesteps").write_text("no folder")
    said, _ = drawn(here, "out=file")
    assert "they are not kept beside the checkpoint" in said


def test_an_evaluation_takes_them_from_the_same_file_and_puts_them_on_record(here: Path):
    drawn(here, "out=first")
    (file,) = kept(here)
    few = ["n=8", "features=pixels", "metrics=[fd]", "out=eval"]
    done = run("eval", "ckpt=run", *CHOSEN, *few, cwd=here)
    assert done.returncode == 0, done.stderr
    assert f", from {file}" in done.stdout
    (record,) = (here / "eval").glob("*.json")
    samples = json.loads(record.read_text())["samples"]
    assert (samples["sampler"]["spacing"], samples["sampler"]["steps"]) == ("optimized", chosen(file))
    assert (samples["steps"], samples["network_calls"]) == (4, 4)
    again = run("eval", "ckpt=run", *CHOSEN, *few, cwd=here)
    assert "holds these figures already" in again.stdout


@pytest.mark.slow
def test_classes_are_part_of_the_setting_in_whatever_order(labelled: Path, tmp_path: Path):
    shutil.copytree(labelled, tmp_path / "run")
    for number, classes in enumerate(("[0,3]", "[3,0]", "[0,1]")):
        drawn(tmp_path, f"classes={classes}", "guidance.scale=2", f"out=out{number}")
    assert len(kept(tmp_path)) == 2


@pytest.mark.slow
def test_a_sweep_and_several_processes_share_one_choice(here: Path):
    swept = sample("-m", "ckpt=run", "n=2", *CHOSEN, "seed=0,1,2", "hydra.sweep.dir=sweep", cwd=here)
    assert swept.returncode == 0, swept.stderr
    (file,) = kept(here)
    assert swept.stdout.count("which end") == 1
    assert swept.stdout.count(f", from {file}") == 2
    file.unlink()
    together = run_ranks("sample", "ckpt=run", "n=4", "batch_size=2", *CHOSEN, "out=two", cwd=here)
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("which end") == 1
    alone = sample("ckpt=run", "n=4", "batch_size=2", *CHOSEN, "out=one", cwd=here)
    assert alone.returncode == 0, alone.stderr
    assert (here / "one" / "samples.png").read_bytes() == (here / "two" / "samples.png").read_bytes()


def test_an_edited_picture_has_timesteps_below_where_it_begins(here: Path):
    Image.new("L", (16, 16), 90).save(here / "grey.png")
    said, _ = drawn(here, "mode=edit", "image=grey.png", "strength=0.5", "out=edited")
    (file,) = kept(here)
    assert chosen(file)[0] == 9
    assert "which end" in said


MISTAKES = {
    "sampler=unipc sampler.steps=[19,4,1]": "sampler.spacing: optimized chooses the timesteps, but sampler.steps lists",
    "sampler=ddpm": "sampler.steps: optimized needs a number of timesteps to choose, such as sampler.steps=8",
    "sampler=unipc sampler.steps=25": "sampler: steps must be between 1 and the schedule's 20 timesteps, got 25",
    "sampler=ddpm sampler.steps=15 mode=inpaint image=grey.png mask=mask.png": "sampler.spacing: optimized is only for",
    "sampler=ddim sampler.steps=5 mode=reconstruct n=1 image=grey.png": "sampler.spacing: optimized is only for",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_message_and_leaves_nothing(mistake: str, here: Path):
    Image.new("L", (16, 16), 90).save(here / "grey.png")
    with Image.new("L", (16, 16), 0) as mask:
        mask.paste(255, (0, 0, 8, 8))
        mask.save(here / "mask.png")
    done = sample("ckpt=run", *mistake.split(), "sampler.spacing=optimized", "out=refused", cwd=here)
    assert_one_message(done, "sample", MISTAKES[mistake])
    assert not (here / "refused").exists()
    assert kept(here) == []


def test_training_refuses_them_before_it_begins_and_when_it_resumes(here: Path):
    for more in ([], ["trainer.preview_every=0"]):
        done = train(*TINY_RUN, *more, "sampler.spacing=optimized", cwd=here)
        assert_one_message(done, "train", "sampler.spacing: optimized is for ddpm-sample .*choose trailing")
    resumed = train("resume=run", "trainer.steps=6", "sampler.spacing=optimized", cwd=here)
    assert_one_message(resumed, "train", "sampler.spacing: optimized is for ddpm-sample and ddpm-eval")
    assert not (here / "outputs").exists()
