"""`python -m ddpm_cli`: the commands, and what each of them is for."""

import ast
import pkgutil
import re
import sys
from pathlib import Path

import ddpm_cli


def main() -> None:
    """List the commands; with other arguments, end the process with status 2."""
    listed = commands()
    width = max(map(len, listed)) + 3
    lines = [f"  {name:{width}}{meaning}" for name, meaning in listed.items()]
    lines += ["", "Each command has --help. Each also runs as a module: python -m ddpm_cli.train"]
    text = "\n".join([f"ddpm-cli {ddpm_cli.__version__}: train and sample denoising diffusion models", "", *lines])
    asked = sys.argv[1:]
    if asked in ([], ["--help"], ["-h"]):
        print(text)
    elif asked == ["--version"]:
        print(f"ddpm-cli {ddpm_cli.__version__}")
    else:
        print(f"python -m ddpm_cli: takes no arguments, got {asked[0]!r}\n{text}", file=sys.stderr)
        sys.exit(2)


def commands() -> dict[str, str]:
    """What each command is for, by its name: the first line of its module's docstring. Modules are not imported."""
    found = {}
    for module in pkgutil.iter_modules(ddpm_cli.__path__):
        if module.ispkg or module.name.startswith("_"):
            continue
        source = Path(next(iter(ddpm_cli.__path__)), f"{module.name}.py").read_text(encoding="utf-8")
        described = re.match(r"`(ddpm-[\w-]+)`: (.*)", ast.get_docstring(ast.parse(source)) or "")
        if described is not None:
            found[described[1]] = described[2].rstrip(".")
    return found


if __name__ == "__main__":
    main()
