"""`ddpm-compare`: which runs it finds, what of them it shows, which figures it ranks, what it writes and refuses."""

import csv
import io
import itertools
import json
import re
from pathlib import Path

import pytest
from commands import assert_one_message, run
from written_runs import LINEAR, config, figure, metrics, result, write_evaluation, write_gallery, write_run

from ddpm_cli.comparison import command, figures
from ddpm_cli.comparison.curves import charts_of
from ddpm_cli.comparison.flat_config import differing, flat, short_names
from ddpm_cli.comparison.series import thinned
from ddpm_cli.comparison.table import Column, Comparison, compare
from ddpm_cli.comparison.terminal import terminal_table
from ddpm_cli.io import durable


def column(comparison: Comparison, heading: str) -> Column:
    (found,) = (column for column in comparison.columns if column.heading == heading)
    return found


def texts(comparison: Comparison, heading: str) -> list[str]:
    return [cell.text for cell in column(comparison, heading).cells]


def best(comparison: Comparison, heading: str) -> list[str]:
    cells = column(comparison, heading).cells
    return [run.name for run, cell in zip(comparison.runs, cells, strict=True) if cell.best]


# The command ---------------------------------------------------------------------------------------------------------


def test_runs_are_found_compared_printed_and_written(tmp_path: Path):
    for i, lr in enumerate((0.001, 0.0001)):
        write_run(tmp_path / "outputs" / "sweep" / str(i), config(optimizer__lr=lr), metrics([1.0, 0.5 - 0.1 * i] * 5))
    write_run(tmp_path / "outputs" / "digits" / "then", config(seed=7), metrics([0.9] * 3, heldout=[0.95] * 3))
    done = run("compare", cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["run", "seed", "lr", "step", "final", "loss", "held-out", "loss", "img/s", "time"]
    assert [row.split() for row in rows[:3]] == [
        ["digits/then", "7", "0.001", "30/100", "unfinished", "0.9000", "0.9500", "100", "2.4", "s"],
        ["sweep/0", "0", "0.001", "100/100", "0.5000", "-", "100", "8.0", "s"],
        ["sweep/1", "0", "0.0001", "100/100", "0.4000*", "-", "100", "8.0", "s"],
    ]
    assert rows[-1] == "compare  outputs/compare.html"
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir() if path.is_file()) == [
        *("compare.csv", "compare.html", "compare.md")
    ]
    table = list(csv.DictReader(io.StringIO((tmp_path / "outputs" / "compare.csv").read_text(encoding="utf-8"))))
    assert [row["run"] for row in table] == ["digits/then", "sweep/0", "sweep/1"]
    assert [float(row["final loss"]) for row in table] == [0.9, 0.5, 0.4]
    assert [row["optimizer.lr"] for row in table] == ["0.001", "0.001", "0.0001"]
    assert [row["state"] for row in table] == ["unfinished", "finished", "finished"]
    text = (tmp_path / "outputs" / "compare.md").read_text(encoding="utf-8")
    assert "| sweep/1 | 0 | 0.0001 | 100/100 | **0.4000** |  | 100 | 8.0 s |" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: no such directory"),
        (["outputs", "file"], "file: is not a directory"),
        (["empty"], "no runs in empty"),
        (["--outt=x"], "unrecognized arguments: --outt=x; --help shows"),
        (["outputs", "--out", "file"], "file is not a directory"),
        (["outputs", "--out", "theirs"], "theirs/compare.html was not written by ddpm-compare, and is kept"),
    ],
)
def test_what_cannot_be_done_is_one_message(tmp_path: Path, arguments: list[str], says: str):
    write_run(tmp_path / "outputs" / "a", config(), metrics([1.0]))
    for name in ("empty", "theirs"):
        (tmp_path / name).mkdir()
    for file in ("file", "theirs/compare.html"):
        (tmp_path / file).write_text("<!DOCTYPE html><p>theirs", encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_one_message(run("compare", *arguments, cwd=tmp_path), "compare", re.escape(says))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_help_and_version(tmp_path: Path):
    assert "runs, sweeps, or directories of them (default: outputs)" in run("compare", "--help", cwd=tmp_path).stdout
    assert re.fullmatch(r"ddpm-cli \d\S*\n", run("compare", "--version", cwd=tmp_path).stdout)
    assert_one_message(run("compare", cwd=tmp_path), "compare", "outputs: no such directory")


def test_an_earlier_comparison_is_replaced_and_never_half_written(tmp_path: Path, monkeypatch, capsys):
    runs, out = tmp_path / "runs", tmp_path / "new" / "place"
    write_run(runs / "a", config(), metrics([1.0]))
    assert command.run([str(runs), "--out", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    write_run(runs / "b", config(seed=1), metrics([1.0]))

    def full(path: Path, chunks) -> tuple[int, str]:
        with path.open("xb") as file:
            file.write(b"".join(chunks)[:100])
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as disk:
        disk.setattr(durable, "write_new", full)
        assert command.run([str(runs), "--out", str(out)]) == 1
    assert "cannot write: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name in before} == before
    assert command.run([str(runs), "--out", str(out)]) == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


def test_the_table_fits_the_terminal_and_says_what_does_not(tmp_path: Path):
    write_gallery(tmp_path / "runs", runs=11)
    comparison = compare([tmp_path / "runs"])
    columns = sum(any(cell.text for cell in column.cells) for column in comparison.columns)
    widest = terminal_table(comparison, 1000, "compare.csv")
    assert "not fit" not in widest
    for width in (30, 50, 79, 80, 81, 100, 133, 200):
        lines = terminal_table(comparison, width, "compare.csv").splitlines()
        table = lines[: 1 + len(comparison.runs)]
        assert max(map(len, table)) <= width
        ends = {len(line.rstrip()) for line in table}
        assert len(ends) <= 3, "numbers stand below each other, but for a mark"
        left = re.search(r"(\d+) more columns? do(es)? not fit: see compare.csv", lines[-1])
        shown = len(re.findall(r"held-out loss|final loss|\S+ \(\d\)|\S+", lines[0])) - 1
        assert columns - shown == (int(left[1]) if left else 0), lines[0]


# What differs --------------------------------------------------------------------------------------------------------


def test_only_what_differs_is_shown_by_its_shortest_name():
    a = config(name="a", output_dir="x", resume=None, seed=1)
    b = config(seed=2, optimizer__lr=1e-5, trainer__steps=7)
    keys = differing([flat(a), flat(b)])
    assert keys == ["seed", "optimizer.lr", "trainer.steps"]
    assert list(short_names([*keys, "sampler.steps"]).items()) == [
        ("seed", "seed"),
        ("optimizer.lr", "lr"),
        ("trainer.steps", "trainer.steps"),
        ("sampler.steps", "sampler.steps"),
    ]


def test_options_of_another_choice_are_no_difference():
    """As config.compare has it: beta_start of a linear schedule says nothing about a cosine one, but s of two does."""
    cosine, linear = config(), config(schedule=LINEAR)
    assert differing([flat(cosine), flat(linear)]) == ["schedule"]
    other = config(schedule__s=0.1)
    assert differing([flat(cosine), flat(linear), flat(other)]) == ["schedule", "schedule.s"]
    assert [flat(run)["schedule"] for run in (cosine, linear)] == ["cosine", "linear"]


def test_an_option_that_an_older_version_has_not_is_a_difference_only_where_it_is_on():
    old, off, on = config(), config(data__holdout=0), config(data__holdout=100)
    assert differing([flat(old), flat(off)]) == []
    assert differing([flat(old), flat(on)]) == differing([flat(off), flat(on)]) == ["data.holdout"]


def test_a_run_that_failed_at_once_shows_what_was_swept(tmp_path: Path):
    write_run(tmp_path / "0", config(), metrics([1.0] * 10), result=result(["optimizer.lr=0.001"], 1.0))
    failed = result(["optimizer.lr=7", "name=b"], error="optimizer: lr is\ntoo large")
    write_run(tmp_path / "1", None, [], preview=None, result=failed)
    comparison = compare([tmp_path])
    assert texts(comparison, "lr") == ["0.001", "7"]
    assert texts(comparison, "step") == ["100/100", "0 failed"]
    assert comparison.notes == ["1: failed: optimizer: lr is"]
    assert [column.heading for column in comparison.columns if column.kind == "key"] == ["lr"]


# What may be ranked --------------------------------------------------------------------------------------------------


def test_the_best_of_each_name_and_fingerprint_is_marked_and_no_other(tmp_path: Path):
    for name, value, split in (("a", 3.0, "train"), ("b", 2.0, "train"), ("c", 1.0, "test")):
        directory = write_run(tmp_path / name, config(), metrics([1.0] * 10))
        made = [figure("fd1k_classifier", value, split=split), figure("precision1k", value, metric="precision_recall")]
        write_evaluation(directory, "one", made, split=split)
    comparison = compare([tmp_path])
    assert best(comparison, "fd1k_classifier (1)") == ["b"]
    assert best(comparison, "fd1k_classifier (2)") == [], "alone it is not the best of anything"
    assert texts(comparison, "fd1k_classifier (2)") == ["", "", "1.000"]
    assert best(comparison, "precision1k") == ["a"], "of precision more is better"
    assert comparison.notes == [
        "fd1k_classifier: (1), (2) cannot be compared with each other, as these differ: reference.split (train, test)"
    ]


def test_the_reason_names_how_many_images_and_whose_features(tmp_path: Path):
    for name, n in (("a", 1000), ("b", 1797)):
        directory = write_run(tmp_path / name, config(), metrics([1.0]))
        file = write_evaluation(directory, "one", [figure("fd1k_classifier", 1.0, n=n)])
        record = json.loads(file.read_text())
        record["features"]["identity"]["weights"] = name * 64
        file.write_text(json.dumps(record))
    (note,) = (note for note in compare([tmp_path]).notes if note.startswith("fd1k"))
    assert "n (1000, 1797)" in note
    assert "features.identity.weights (aaaaaaaaaaaa..., bbbbbbbbbbbb...)" in note


def test_losses_of_different_kinds_are_not_ranked(tmp_path: Path):
    """Of other predictions, weightings, schedules or data they are other quantities; another seed's mean the same."""
    write_run(tmp_path / "a", config(), metrics([1.0, 0.5] * 5, heldout=[0.6]))
    write_run(tmp_path / "b", config(seed=1), metrics([1.0, 0.4] * 5, heldout=[0.5]))
    unfinished = [*metrics([0.1]), {"step": 10, "eval/heldout": 0.7, "eval_error/heldout": 0.02}]
    write_run(tmp_path / "unfinished", config(), unfinished)
    comparison = compare([tmp_path])
    assert best(comparison, "final loss") == ["b"]
    assert texts(comparison, "held-out loss") == ["0.6000", "0.5000", "0.7000 ± 0.0200"]
    assert best(comparison, "held-out loss") == [], "the seed decides which images are held out"
    assert "held-out loss: not ranked, as these differ: seed (0, 1)" in comparison.notes
    write_run(tmp_path / "c", config(prediction={"_target_": "x.Velocity"}), metrics([1.0, 0.1] * 5))
    comparison = compare([tmp_path])
    assert best(comparison, "final loss") == []
    assert "final loss: not ranked, as these differ: prediction (eps, Velocity)" in comparison.notes
    moved = config(data__root="elsewhere", data__workers=3)
    write_run(tmp_path / "elsewhere" / "d", moved, metrics([1.0, 0.3] * 5))
    (tmp_path / "c").rename(tmp_path / ".c")
    assert best(compare([tmp_path]), "final loss") == ["elsewhere/d"], "where the data lie is no difference"


def test_of_several_evaluations_of_a_run_the_best_counts_and_all_are_drawn(tmp_path: Path):
    for name in "ab":
        directory = write_run(tmp_path / name, config(), metrics([1.0]))
        for calls, value in ((5, 9.0), (20, 3.0), (10, 5.0)):
            made = figure("fd1k_classifier", value + (name == "b"))
            write_evaluation(directory, f"calls_{calls}", [made], calls=calls)
        write_evaluation(directory, "early", [figure("fd1k_classifier", 20.0)], step=50, calls=20)
    comparison = compare([tmp_path])
    cells = column(comparison, "fd1k_classifier").cells
    assert [cell.text for cell in cells] == ["3.000", "4.000"]
    assert cells[0].detail == "step 100, dpmpp_2m_sde 20 steps, 20 network calls, n = 1,797"
    charts = {chart.title: chart for chart in charts_of(comparison.runs)}
    first, *_ = charts["fd1k_classifier against network calls"].curves
    assert first.points == [(5, 9.0), (10, 5.0), (20, 3.0)]
    first, *_ = charts["fd1k_classifier over checkpoints"].curves
    assert first.points == [(50, 20.0), (100, 3.0)]


def test_directions():
    assert figures.better_of("fd", "fid") == figures.better_of("kd", "kd10k_x") == figures.LOWER
    assert figures.better_of("inception_score", "is10k") == figures.HIGHER
    assert figures.better_of("precision_recall", "recall10k_inception") == figures.HIGHER
    assert figures.better_of("mine", "mine") == figures.UNKNOWN


def test_curves_are_thinned_to_their_means_and_end_where_they_end():
    points = [(i, float(i % 2)) for i in range(1, 10_001)]
    thin = thinned(points, 300)
    assert len(thin) <= 300
    assert thin[-1] == points[-1]
    assert all(a[0] < b[0] for a, b in itertools.pairwise(thin))
    assert all(value == pytest.approx(0.5, abs=0.02) for _, value in thin[:-1])
    assert thinned(points[:5], 300) == points[:5]
