"""Who may import whom: the rooms of the house, and what must stay light."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_cli

PACKAGE = Path(__file__).resolve().parent.parent / "ddpm_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a room may import of ours, beside itself.
ROOMS = {
    "diffusion": set(),
    "models": set(),
    "io": set(),
    "runtime": set(),
    "distributed": set(),
    "ema": {"distributed"},
    "config": {"diffusion"},
    "data": {"io", "runtime"},
    "checkpoint": {"config", "diffusion", "ema", "io"},
    "sampling": {"checkpoint", "config", "data", "diffusion", "distributed", "io", "runtime"},
    "evaluation": {"checkpoint", "config", "data", "diffusion", "distributed", "io", "runtime", "sampling"},
    "conversion": {"checkpoint", "comparison", "config", "diffusion", "io", "models", "runtime"},
    "loggers": {"config", "io", "runtime"},
    "training": {
        *(
            "checkpoint",
            "config",
            "conversion",
            "data",
            "diffusion",
            "distributed",
            "ema",
            "evaluation",
            "io",
            "loggers",
        ),
        *("models", "runtime", "sampling"),
    },
    "comparison": {"config", "io"},
    "cli": {"comparison", "config", "io", "runtime"},
}
COMMANDS = {"train", "sample", "eval", "compare", "import_model", "export_model"}
ONLY_IN_BUILD_DDPM = {"config": "diffusion"}  # configurations meet the mathematics in one file


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported(module: Path) -> set[str]:
    """Full names of everything a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(module: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(module) if name.startswith("ddpm_cli.")} - {"__version__"}


def test_at_the_root_stand_the_commands_alone():
    assert {module.stem for module in PACKAGE.glob("*.py")} == {"__init__", "__main__"} | COMMANDS
    assert {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


def test_rooms_import_one_way():
    """Also what stands under TYPE_CHECKING or inside a function counts."""
    wrong = []
    for module in MODULES:
        reached = ours(module)
        if reached & COMMANDS:
            wrong.append(f"{module.relative_to(PACKAGE)}: nobody imports a command")
        if room(module) in ROOMS and not reached <= ROOMS[room(module)] | {room(module)}:
            wrong.append(f"{module.relative_to(PACKAGE)}: {sorted(reached - ROOMS[room(module)] - {room(module)})}")
        if ONLY_IN_BUILD_DDPM.get(room(module)) in reached and module.name != "build_ddpm.py":
            wrong.append(f"{module.relative_to(PACKAGE)}: only config/build_ddpm.py reaches diffusion")
    assert not wrong, "\n".join(wrong)


def test_no_two_modules_of_ours_import_each_other():
    names = {".".join(("ddpm_cli", *module.relative_to(PACKAGE).with_suffix("").parts)): module for module in MODULES}
    arrows = {
        name: {other for item in imported(module) for other in names if item == other or item.startswith(f"{other}.")}
        - {name}
        for name, module in names.items()
    }
    arrows = {name: {other for other in others if not other.endswith("__init__")} for name, others in arrows.items()}
    while leaves := [name for name, others in arrows.items() if not others & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert not arrows, f"a circle among {sorted(arrows)}"


def test_hydra_stays_at_the_door():
    for module in MODULES:
        if room(module) != "cli":
            assert not {name.split(".")[0] for name in imported(module)} & {"hydra", "omegaconf"}, module


def test_the_diffusion_room_stands_on_torch_alone():
    outside = {
        name.split(".")[0] for module in MODULES if room(module) == "diffusion" for name in imported(module)
    } - set(sys.stdlib_module_names)
    assert outside == {"ddpm_cli", "torch", "tqdm"}


def test_the_public_names_are_in_one_table():
    """What a type checker is told, what `import *` gives and what is imported on use are the same."""
    homes = {f"{home}.{name}" for name, home in ddpm_cli._HOMES.items()}
    assert {name for name in imported(PACKAGE / "__init__.py") if name.startswith("ddpm_cli.")} == homes
    assert sorted(ddpm_cli._HOMES) == ddpm_cli.__all__
    assert room(PACKAGE / "__init__.py") not in ROOMS


def test_the_public_names_cost_nothing_until_they_are_used():
    code = (
        "import sys, ddpm_cli\n"
        "assert {*ddpm_cli.__all__, '__version__'} <= set(dir(ddpm_cli)), dir(ddpm_cli)\n"
        "assert not hasattr(ddpm_cli, 'ddpm')\n"
        "assert 'torch' not in sys.modules\n"
        "from ddpm_cli import DDPM, UNet, NoiseSchedule, linear, cosine, load\n"
        "assert isinstance(cosine(timesteps=4), NoiseSchedule) and isinstance(linear(timesteps=4), NoiseSchedule)\n"
        "assert ddpm_cli.DDPM is DDPM and callable(load) and callable(UNet)\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "module",
    [
        *("ddpm_cli.train", "ddpm_cli.sample", "ddpm_cli.eval", "ddpm_cli.compare"),
        *("ddpm_cli.import_model", "ddpm_cli.export_model"),
        *("ddpm_cli.config.schema", "ddpm_cli.data.decode", "ddpm_cli.loggers.process"),
    ],
)
def test_no_torch_before_there_is_work(module: str):
    """--help, --cfg job, a mistyped key, and the processes that decode images pay no seconds for importing torch."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
