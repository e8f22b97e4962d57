"""Nobody listens: closed, full and dead standard streams take what is said, never the run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import TINY_RUN, only, start, train

CLOSED = """
import os, sys
os.close(1), os.close(2)
sys.stdout = sys.stderr = None  # as Python has it then
from ddpm_cli.train import main; main()
"""
FULL = """
import os
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
from ddpm_cli.train import main; main()
"""


def records(place: Path) -> tuple[str, list[int]]:
    """train.log, and the steps that are on record."""
    directory = only(place / "outputs" / "digits")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert (directory / "checkpoints" / "step_00000004" / "manifest.json").is_file()
    return (directory / "train.log").read_text(), [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (CLOSED, [f"standard {name} cannot be written (Bad file descriptor)" for name in ("output", "error")]),
        (FULL, ["standard output cannot be written (No space left on device)"]),
    ],
    ids=["closed", "full"],
)
def test_a_run_goes_on_without_a_console(code: str, says: list[str], tmp_path: Path):
    done = train(*TINY_RUN, code=code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    log, steps = records(tmp_path)
    assert steps == [2, 4]
    assert [log.count(line) for line in says] == [1] * len(says), log
    assert log.count(" cannot be written ") == len(says)
    assert "step 4/4" in log


def test_a_run_goes_on_when_its_reader_dies(tmp_path: Path):
    """A `tee` that is killed."""
    process = start("train", *TINY_RUN, cwd=tmp_path)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    log, steps = records(tmp_path)
    assert steps == [2, 4]
    assert log.count("standard output cannot be written (Broken pipe)") == 1
    assert "step 4/4" in log


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path):
    code = (
        "from ddpm_cli.runtime import console; console.install()\n"
        "file = open('file', 'w'); print('lost'); import os, sys; sys.stdout.flush(); sys.stderr.write('lost')\n"
        "os.system('echo lost; echo lost >&2')\n"
        "file.write(str(file.fileno() > 2)); file.close()"
    )
    shell = f'exec {sys.executable} -c "$CODE" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, env={"CODE": code, "PYTHONPATH": _here()})
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def _here() -> str:
    return str(Path(__file__).resolve().parent.parent)


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [("| head -1", "0", ""), ("> /dev/full", "1", "ddpm-train: standard output: No space left on device\n")],
    ids=["head", "full"],
)
def test_what_is_asked_for_is_shown_or_said_to_be_lost(end: str, status: str, says: str, tmp_path: Path):
    """A reader that has seen enough is not an error; a disk that has no room for the configuration is."""
    script = f"{{ {sys.executable} -m ddpm_cli.train --cfg job; echo $? > status; }} {end}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (tmp_path / "status").read_text().strip() == status
    assert done.stderr == says


def test_what_a_console_cannot_show_is_escaped(tmp_path: Path):
    code = "from ddpm_cli.runtime import console; console.install(); print('\\u2713 \\udc80')"
    options = {"env": {"PYTHONPATH": _here(), "PYTHONIOENCODING": "ascii"}, "capture_output": True}
    assert subprocess.run([sys.executable, "-c", code], **options).stdout == b"\\u2713 \\udc80\n"
