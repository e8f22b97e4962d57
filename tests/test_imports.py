"""Who may import whom: the rooms of the house, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ddpm_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a room may import of ours; a room not listed here is an entry point or above, and may import anything but those.
ALLOWED = {
    "diffusion": {"diffusion"},
    "models": {"models"},
    "data": {"data", "durable", "ending", "images", "printable", "seeds"},
    "training": {
        *("training", "averages", "diffusion", "data", "devices", "durable", "images", "logs", "ranks", "seeds"),
        "sharding",
    },
    "averages": set(),
    "durable": set(),
    "ending": set(),
    "sharding": set(),
    "ranks": {"diffusion", "sharding"},
    "seeds": set(),
    "images": {"durable"},
    "printable": set(),
    "devices": set(),
    "logs": set(),
    "run_directory": {"durable"},
    "signatures": set(),
    "config": {"diffusion", "signatures"},
    "checkpoint": {"checkpoint", "durable"},
    "resume": {"config"},
    "untrusted": {"averages", "config"},
    "pretrained": {"averages", "checkpoint", "config", "diffusion", "untrusted"},
    "prepare": {"config", "data", "devices", "diffusion", "ranks", "seeds", "sharding", "training"},
    "run": {
        *("checkpoint", "config", "devices", "diffusion", "durable", "ending", "images", "logs", "prepare", "ranks"),
        *("run_directory", "seeds", "training", "untrusted"),
    },
    "modes": {"data", "diffusion", "images", "seeds"},
    "prepare_sampling": {"config", "devices", "diffusion", "modes", "pretrained"},
    "sample_files": set(),
    "drawing": {"devices", "diffusion", "ending", "images", "modes"},
    "unfinished": {"durable", "resume", "sample_files"},
    "sample_pictures": {"durable", "images", "modes", "sample_files", "unfinished"},
    "contact_sheet": {"images"},
    "pinning": set(),
    "sweep": {"contact_sheet", "pinning"},
    "jobs": {"config", "ending", "pinning", "sweep"},
    "mistakes": {"config", "ending", "printable"},
    "cli": {"config", "ending", "jobs", "mistakes", "printable", "sweep"},
}
ENTRY_POINTS = {"train", "sample"}
KNOWS_HYDRA = {"cli", "jobs", "mistakes", "sweep"}


def room(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_imports_run_one_way(module: Path):
    ours = {name.split(".")[1] for name in imported(module) if name.startswith("ddpm_cli.")} - {"__version__"}
    assert not ours & ENTRY_POINTS, "nobody imports an entry point"
    if room(module) in ENTRY_POINTS or room(module) == "__init__":
        return
    assert ours <= ALLOWED[room(module)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(PACKAGE)))
def test_hydra_stays_at_the_door(module: Path):
    if room(module) not in KNOWS_HYDRA:
        assert not {name.split(".")[0] for name in imported(module)} & {"hydra", "omegaconf"}


def test_the_diffusion_room_stands_on_torch_alone():
    outside = {
        name.split(".")[0] for module in MODULES if room(module) == "diffusion" for name in imported(module)
    } - set(sys.stdlib_module_names)
    assert outside == {"ddpm_cli", "torch", "tqdm"}


@pytest.mark.parametrize("module", ["ddpm_cli.train", "ddpm_cli.sample", "ddpm_cli.config", "ddpm_cli.data.decode"])
def test_no_torch_before_there_is_work(module: str):
    """--help, --cfg job, a mistyped key, and the processes that decode images pay no seconds for importing torch."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
