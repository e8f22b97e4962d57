"""The README's code runs, and its commands compose, as those of docs/evaluation.md do."""

import re
import shlex
from pathlib import Path

import hydra
import pytest

from ddpm_cli.config.shipped import configs_directory

ROOT = Path(__file__).resolve().parent.parent
README, *OTHERS = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/evaluation.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMAND = re.compile(r"^    (ddpm-(?:train|sample|eval|import|export)(?: [^#\n]+?)?)(?:\s+#.*)?$", re.MULTILINE)
COMMANDS = sorted({command for text in (README, *OTHERS) for command in COMMAND.findall(text)})


def test_the_notebook_example_runs_as_it_stands_but_shorter():
    code = BLOCKS[0].replace("range(1000)", "range(2)").replace("timesteps=1000", "timesteps=3")
    assert code.count("range(2)") == code.count("timesteps=3") == 1
    names: dict = {}
    exec(code, names)
    assert names["images"].shape == (16, 1, 16, 16)
    assert names["images"].abs().max() <= 1


def test_the_other_examples_are_python():
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        compile(block, "README.md", "exec")


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--config-dir" not in command])
def test_commands_compose(command: str):
    program, *overrides = shlex.split(command)
    overrides = [override for override in overrides if not override.startswith("-")]
    first_of_sweep = [re.sub(r"=([^\[,]*),.*", r"=\1", override) for override in overrides]
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        assert hydra.compose(program.removeprefix("ddpm-"), first_of_sweep)


def test_there_are_commands():
    assert len(COMMANDS) >= 10
