"""The README's code runs, and the commands of README, tutorials and explanations compose."""

import re
import shlex
from pathlib import Path

import hydra
import pytest

from ddpm_cli.config.shipped import configs_directory

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("[et]*/*.md")))]
COMMAND = re.compile(r"^    (ddpm-(?:train|sample|eval|import|export)(?: [^#\n]+?)?)(?:\s+#.*)?$", re.MULTILINE)
COMMANDS = sorted({command for page in PAGES for command in COMMAND.findall(page.replace("\\\n", ""))})


def test_the_python_example_runs_and_ends_in_a_picture(trained, monkeypatch):
    run, _ = trained
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert code.count('"outputs/first"') == code.count("steps=25") == 1
    monkeypatch.chdir(run.parent)
    names: dict = {}
    exec(code.replace('"outputs/first"', repr(str(run))).replace("steps=25", "steps=2"), names)
    assert names["images"].shape == (64, 1, 16, 16)
    assert names["images"].abs().max() <= 1
    assert (run.parent / "digits.png").stat().st_size > 1000


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str):
    program, *overrides = shlex.split(command)
    overrides = [override for override in overrides if not override.startswith("-")]
    first_of_sweep = [re.sub(r"=([^\[,]*),.*", r"=\1", override) for override in overrides]
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        assert hydra.compose(program.removeprefix("ddpm-"), first_of_sweep)


def test_there_are_commands():
    assert len(COMMANDS) >= 20


def test_it_fits_on_two_screens():
    assert len(README.splitlines()) <= 80
