"""What the how-to pages in docs/ tell users to type: every command composes, and the files of their own really run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

import hydra
import numpy as np
import pytest
from commands import only, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from ddpm_cli.cli.arguments import key_of, read_arguments
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.comparison.command import _parser as compare_parser
from ddpm_cli.config import eval_options, export_options, import_options, sample_options, train_options
from ddpm_cli.config.schema import check
from ddpm_cli.config.shipped import configs_directory

HOW_TO = Path(__file__).resolve().parent.parent / "docs" / "how-to"
PAGES = sorted(HOW_TO.glob("*.md"))
OPTIONS = {
    "train": train_options.OPTIONS,
    "sample": sample_options.OPTIONS,
    "eval": eval_options.OPTIONS,
    "import": import_options.OPTIONS,
    "export": export_options.OPTIONS,
}
FILES = re.compile(r"^```(?:python|yaml)\n(# (\S+\.(?:py|yaml))\n.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:ddpm-|-m ddpm_cli\.)(train|sample|eval|import|export|compare)( .+)?$")
TINY = [
    *("trainer.steps=4", "trainer.batch_size=8", "trainer.warmup_steps=0", "trainer.preview_every=2"),
    *("trainer.preview_images=4", "schedule.timesteps=20", "sampler.steps=3"),
]


def written(page: Path, directory: Path) -> Path:
    """The directory with the files in it that a page holds, each with its first line, which names it."""
    for content, name in FILES.findall(page.read_text(encoding="utf-8")):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        # Hydra takes a header only from the first line: there the page says that the name is to be left out.
        content = content.partition("\n")[2] if "\n# @package" in content else content
        (directory / name).write_text(content, encoding="utf-8")
    return directory


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands in a page's code blocks, indented or of a shell, and in its running text: program and arguments."""
    text = re.sub(r" *\\\n *", " ", page.read_text(encoding="utf-8"))
    text = re.sub(
        r"^```sh\n(.*?)^```", lambda block: re.sub("^", "    ", block[1], flags=re.M), text, flags=re.M | re.S
    )
    for code in re.findall(r"^    (.+)$|`(ddpm-\w+ [^`]+)`", text, re.MULTILINE):
        for command in re.split(r" +#|;|&&| & ", "".join(code)):
            found = COMMAND.search(command.strip().removesuffix(" &"))
            if found is not None:
                yield found[1], shlex.split(found[2] or "")


COMMANDS = [(page.stem, *command) for page in PAGES for command in commands(page)]
# Several pages have the same one; the page counts only where it brings files of its own.
DISTINCT = {(program, *arguments): (page, program, arguments) for page, program, arguments in COMMANDS}.values()


GROUPS = {place.name for place in configs_directory().iterdir()}


def combinations(overrides: list[str]) -> Iterator[list[str]]:
    """One list of overrides; of a sweep as many as the longest of its lists of options has. Of values the first one."""
    choices: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        each = override.sweep_string_iterator() if override.is_sweep_override() else ()
        values = [f"{key}={value}" for value in each] or [str(override.input_line)]
        choices.append(values if key in GROUPS else values[:1])
    for chosen in zip_longest(*choices):
        yield [one or values[0] for one, values in zip(chosen, choices, strict=True)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each page, with its files."""
    directory = tmp_path_factory.mktemp("own")
    for page in PAGES:
        written(page, directory / page.stem)
    return directory


@pytest.mark.parametrize(
    ("page", "program", "arguments"), DISTINCT, ids=[f"{page}: {' '.join([p, *a])}" for page, p, a in DISTINCT]
)
@pytest.mark.slow
def test_commands_compose(page: str, program: str, arguments: list[str], own: Path, monkeypatch: pytest.MonkeyPatch):
    """Each with keys that there are and values of their types, as the command itself checks before it does anything."""
    if program == "compare":
        compare_parser().parse_args(arguments)
        return
    (own / page / "RUN_DIR" / ".hydra").mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(own / page)
    monkeypatch.syspath_prepend(own / page)
    if arguments in (["--help"], ["--version"]):
        return
    given = read_arguments(arguments)
    searched = [] if given.config_dir is None else [f"hydra.searchpath=[file://{given.config_dir}]"]
    own_configuration = any(key_of(override) in ("resume", "fork") for override in given.overrides)
    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        for chosen in combinations(given.overrides):
            composed = OmegaConf.to_container(hydra.compose(program, [*chosen, *searched]), resolve=True)
            assert isinstance(composed, dict)
            if not own_configuration:  # else the keys are to be those of a run that is not here
                check(composed, OPTIONS[program])


def test_every_page_has_commands():
    assert {page for page, _, _ in COMMANDS} == {page.stem for page in PAGES}


def test_parts_of_ones_own_are_trained_with_and_sampled_from(tmp_path: Path):
    page = written(HOW_TO / "add-your-own.md", tmp_path)
    subprocess.run([sys.executable, "make_shapes.py"], cwd=page, check=True)
    (_, train), (_, sample), (_, train_on_labels), (_, sample_by_label), (_, resume) = commands(
        HOW_TO / "add-your-own.md"
    )

    assert "network  Small" in told(page, "train", *train, *TINY)
    directory = only(page / "outputs" / "mine")
    assert images(page, *sample, directory=directory, out="a").shape == (3, 16, 16, 1)
    assert "resumed  at step 4" in told(page, "train", *resume, "trainer.steps=6", directory=directory)
    assert (directory / "checkpoints" / "step_00000006").is_dir()

    assert "classes  0: square, 1: disc" in told(page, "train", *train_on_labels, *TINY)
    directory = only(page / "outputs" / "classes")
    assert images(page, *sample_by_label, directory=directory, out="b").shape == (2 * 3, 16, 16, 1)


def told(page: Path, program: str, *arguments: str, directory: Path = Path()) -> str:
    """What a command says that is run in the directory of a page's files, with RUN_DIR for that of a run."""
    path = os.pathsep.join([str(page), os.environ.get("PYTHONPATH", "")])
    done = run(program, *(a.replace("RUN_DIR", str(directory)) for a in arguments), cwd=page, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def images(page: Path, *arguments: str, directory: Path, out: str) -> np.ndarray:
    told(page, "sample", *arguments, "n=3", "sampler.steps=3", "save=npz", f"out={out}", directory=directory)
    with np.load(page / out / "samples.npz") as archive:
        return archive["arr_0"]
