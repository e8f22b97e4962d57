"""Options as other trainers call them are answered with ours, which are there, and before torch is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import assert_one_message, run, train

from ddpm_cli.config.known_elsewhere import EVAL, SAMPLE, TRAIN, called_here, names_of
from ddpm_cli.config.schema import check_key, options_of
from ddpm_cli.config.shipped import configs_directory, groups, options

COMMANDS = {"train": TRAIN, "sample": SAMPLE, "eval": EVAL}


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("max_steps=1000", "trainer.steps"),
        ("trainer.max_steps=1000", "trainer.steps"),
        ("+max_epochs=3", "trainer.steps, in steps, not epochs"),
        ("ckpt_path=x", "resume=RUN_DIR to resume a run; fork=RUN_DIR to start a new run .*; init=PATH"),
        ("resume_from_checkpoint=latest", "resume=RUN_DIR"),
        ("learning_rate=1e-4", "optimizer.lr"),
        ("lr=1e-4", "optimizer.lr"),
        ("batch_size=8", "trainer.batch_size"),
        ("num_workers=4", "data.workers"),
        ("trainer.devices=2", "torchrun --nproc_per_node=N"),
        ("ema_decay=0.999", "ema.decays"),
        ("num_timesteps=1000", "schedule.timesteps"),
        ("diffusion.steps=1000", "schedule.timesteps"),
        ("resolution=64", "data.image_size"),
        ("save_images_every=100", "trainer.preview_every"),
    ],
)
def test_a_famous_name_is_answered_with_ours(given: str, ours: str, tmp_path: Path):
    key = re.escape(given.lstrip("+").partition("=")[0])
    assert_one_message(train(given, cwd=tmp_path), "train", f"{key}: here it is {ours}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("program", "given", "ours"),
    [
        ("sample", "num_inference_steps=50", "sampler.steps"),
        ("sample", "num_samples=64", "n$"),
        ("sample", "init=x", "ckpt"),
        ("eval", "model_path=x", "ckpt"),
    ],
)
def test_so_it_is_of_the_other_commands(program: str, given: str, ours: str, tmp_path: Path):
    key = given.partition("=")[0]
    assert_one_message(run(program, "ckpt=x", given, cwd=tmp_path), program, f"{key}(.path)?: here it is {ours}")


@pytest.mark.parametrize(("command", "target"), COMMANDS.items())
def test_no_name_is_one_of_ours_and_what_they_are_called_is(command: str, target: str):
    own, chosen, files = options_of(target), groups(command), options(configs_directory())
    for name in names_of(target):
        group, _, option = name.partition(".")
        assert name not in own
        assert group not in chosen or not option or not _is_ours(group, option), name
        ours = called_here(name, target)
        assert ours is not None
        for said in re.findall(r"\b([a-z_]+)(?:\.([a-z_]+))?(?==|\b)", ours.partition(",")[0].partition(":")[0])[:1]:
            assert said[0] in (*own, *files, "ddpm", "torchrun"), ours


def _is_ours(group: str, option: str) -> bool:
    """Whether any option of a group takes an argument of that name."""
    from ddpm_cli.config.shipped import shipped_targets

    return any(option in options_of(target) for target in shipped_targets().get(group, ()))


def test_the_answer_takes_no_torch(tmp_path: Path):
    code = (
        "import sys\n"
        "from ddpm_cli.train import main\n"
        "sys.argv[1:] = ['max_steps=3']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "ddpm-train: max_steps: here it is trainer.steps\n")


def test_a_key_of_ones_own_by_such_a_name_is_taken(tmp_path: Path):
    config = {"data": {"_target_": f"{__name__}.pictures", "resolution": 8}}
    assert check_key(config, "data.resolution", TRAIN) == 8


def pictures(*, resolution: int) -> int:
    return resolution
