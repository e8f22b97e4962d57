"""What `ddpm-compare` reads: which directories are runs, how they ended, records that are damaged, hostile or huge."""

import csv
import io
import os
import socket
import time
from pathlib import Path

import pytest
import yaml
from written_runs import config, metrics, result, write_run

from ddpm_cli.comparison import command
from ddpm_cli.comparison.find import find_runs
from ddpm_cli.comparison.run import read_run
from ddpm_cli.comparison.table import compare

# Which runs, and how they ended --------------------------------------------------------------------------------------


def test_runs_are_found_wherever_they_lie_each_once_in_natural_order(tmp_path: Path):
    for name in ("a/10", "a/2", "a/9", "deep/er/still/x"):
        write_run(tmp_path / name, config(), metrics([1.0]))
    write_run(tmp_path / "a" / "2" / "samples" / "not_a_run", config(), metrics([1.0]))
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    drawn = write_run(tmp_path / "drawn" / "0", None, [], result=result(["ckpt=a/2"], error="no such file"))
    (tmp_path / ".trash").mkdir()
    write_run(tmp_path / ".trash" / "old", config(), metrics([1.0]))
    found = find_runs([tmp_path, tmp_path / "a", tmp_path / "a" / "9"]).directories
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a/2", "a/9", "a/10", "deep/er/still/x", "drawn/0"]
    assert read_run(drawn) is None, "it was to draw, and trains nothing"


LOG = "2026-11-26 10:22:20,064 INFO step 5/9  loss 1.0\n"


@pytest.mark.parametrize(
    ("steps", "record", "log", "lock", "state", "ending"),
    [
        (100, None, LOG, "", "finished", None),
        (100, result([], 1.0), "", "", "finished", None),
        (
            200,
            None,
            f"{LOG}2026-11-26 10:22:21,000 WARNING SIGTERM: stopped at step 100 and saved.\n",
            "",
            "stopped",
            "SI",
        ),
        (200, result([], error="SIGTERM: stopped at step 100", stopped=True), "", "", "stopped", "SIGTERM"),
        (200, None, f"{LOG}2026-11-26 10:22:21,000 ERROR step 100: disk full\nTraceback\n", "", "failed", "step 100"),
        (200, result([], error="disk full"), "", "", "failed", "disk full"),
        (200, None, LOG, "PID\nHOST\n/x\n", "running", None),
        (200, None, LOG, f"{2**22 + 1}\nHOST\n/x\n", "unfinished", "it was killed"),
        (200, result([], None) | {"under_way": True}, LOG, "1\nelsewhere\n/x\n", "unfinished", "it was killed"),
    ],
)
def test_how_a_run_has_ended(tmp_path: Path, steps: int, record, log: str, lock: str, state: str, ending: str | None):
    directory = write_run(tmp_path / "a", config(trainer__steps=steps), metrics([1.0] * 10), result=record)
    (directory / "train.log").write_text(log, encoding="utf-8")
    holder = lock.replace("PID", str(os.getpid())).replace("HOST", socket.gethostname())
    (directory / ".lock").write_text(holder, encoding="utf-8")
    found = read_run(directory)
    assert found is not None
    assert (found.state, found.step, found.steps) == (state, 100, steps)
    assert (found.ending or "").startswith(ending or "")
    assert (found.ending is None) == (ending is None)


# Records that are anybody's ------------------------------------------------------------------------------------------


def bomb(depth: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join([*lines, "loop: &loop {again: *loop}", "deep: " + "[" * 200 + "]" * 200])


def test_damaged_and_hostile_records_are_left_out_and_named(tmp_path: Path, capsys):
    good = write_run(tmp_path / "good", config(), metrics([1.0, 0.5]))
    bad = write_run(tmp_path / "bad", config(), metrics([1.0, 0.6]))
    (bad / "config.yaml").write_text(bomb(40), encoding="utf-8")
    (bad / "run.json").write_text('{"id": 3}', encoding="utf-8")
    with (bad / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 30, "loss/mean": NaN}\n{"step": -1}\n[1]\nnonsense\n' + b"[" * 50_000 + b"\n")
        file.write(b'{"step": 40, "loss/mean": ' + b"9" * 5000 + b'}\n{"step": 50, "loss/mean": "x"}\n{"st')
    (bad / "previews" / "step_00000200.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (bad / "eval").mkdir()
    (bad / "eval" / "list.json").write_text("[]", encoding="utf-8")
    (bad / "eval" / "old.json").write_text('{"format": 0}', encoding="utf-8")
    (bad / "eval" / "no_value.json").write_text('{"format": 1, "metrics": [{"name": "fd"}]}', encoding="utf-8")
    (bad / "eval" / "link.json").symlink_to(good / "run.json")
    (bad / "eval" / "big.json").write_bytes(b" " * (2**22 + 1))
    os.mkfifo(bad / "eval" / "pipe.json")
    os.mkfifo(bad / "result.json")
    linked = write_run(tmp_path / "linked", config(), [])
    (linked / "metrics.jsonl").symlink_to(good / "metrics.jsonl")
    begun = time.monotonic()
    assert command.run([str(tmp_path)]) == 0
    assert time.monotonic() - begun < 10
    said = capsys.readouterr().out
    for what in (
        *(
            "run.json was not written by ddpm-cli",
            "metrics.jsonl: 5 damaged or excess lines",
            "list.json is damaged",
            "old.json is not an evaluation",
        ),
        *("no_value.json holds a figure without", "link.json is a link"),
        *("big.json is larger", "pipe.json is not a plain"),
        *("result.json is not a plain file", "linked/metrics.jsonl is a link"),
    ):
        assert f"left out: {tmp_path}" in said
        assert what in said, said
    assert "step_00000200.png: cannot be shown" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    (losses,) = (column for column in compare([tmp_path]).columns if column.heading == "final loss")
    assert [cell.text for cell in losses.cells] == ["0.6000", "0.5000", ""]


def test_huge_records_are_read_at_their_ends(tmp_path: Path, monkeypatch):
    directory = write_run(tmp_path / "a", config(), metrics([1.0] * 2000))
    monkeypatch.setattr("ddpm_cli.comparison.record_files.MOST_METRICS", 20_000)
    found = read_run(directory)
    assert found is not None
    assert found.series["loss/mean"][0][0] == 10
    assert found.step == 20_000
    assert 200 < len(found.series["loss/mean"]) < 300
    assert "1 damaged or excess lines are left out" in found.left_out[0]


def test_texts_of_others_are_text_in_every_form(tmp_path: Path, capsys):
    for i, note in enumerate(("=HYPERLINK(1)|<b>\x1b[2J", "-2+3\n| x | y |")):
        write_run(tmp_path / str(i), config(data__note=note, data__number=-i), metrics([1.0]), begun_in="/\x1b[2J")
    assert command.run([str(tmp_path)]) == 0
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("compare.*")}
    assert len(written) == 3
    for text in (*written.values(), capsys.readouterr().out):
        assert "\x1b" not in text
    notes = [row["data.note"] for row in csv.DictReader(io.StringIO(written["compare.csv"]))]
    assert notes == ["'=HYPERLINK(1)|<b>\\x1b[2J", "'-2+3\\n| x | y |"], "no formulas"
    assert [row["data.number"] for row in csv.DictReader(io.StringIO(written["compare.csv"]))] == ["0", "-1"]
    (line,) = (line for line in written["compare.md"].splitlines() if "HYPERLINK" in line)
    assert r"=HYPERLINK(1)\|\<b\>" in line


def test_yaml_of_a_run_is_read_as_it_was_written(tmp_path: Path):
    """What `flat` says of every value is what YAML says."""
    nodes = config(data__extensions=["png", "jpg"], optimizer__eps=1e-8, trainer__grad_clip=None)
    directory = write_run(tmp_path / "a", nodes, metrics([1.0]))
    found = read_run(directory)
    assert found is not None
    assert found.config is not None
    values = {
        key: yaml.safe_load(value) for key, value in found.config.items() if key.startswith(("data.", "trainer."))
    }
    assert values["data.extensions"] == ["png", "jpg"]
    assert values["trainer.grad_clip"] is None
    assert values["data.flip"] == "none"
    assert float(found.config["optimizer.eps"]) == 1e-8
