"""`python -m ddpm_cli`: the commands that there are."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ddpm_cli", *arguments], capture_output=True, text=True)


def test_it_lists_every_command():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    listed = re.findall(r"^  (ddpm-\w+) {3,}\S", done.stdout, re.MULTILINE)
    scripts = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]
    assert sorted(listed) == sorted(scripts)


def test_it_takes_nothing_else():
    done = run("train")
    assert done.returncode == 2
    assert done.stderr.startswith("python -m ddpm_cli: takes no arguments, got 'train'\n")
    assert done.stdout == ""
    assert run("--version").stdout.startswith("ddpm-cli ")


def test_it_imports_no_torch():
    code = "import sys, ddpm_cli.__main__ as m; m.commands(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
