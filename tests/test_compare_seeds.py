"""Runs that differ only in their seed: put together, with mean and spread, and nothing else with them."""

from pathlib import Path

import numpy as np
from commands import run
from written_runs import config, figure, metrics, result, write_evaluation, write_run

from ddpm_cli.comparison.of_sweep import compare_sweep
from ddpm_cli.comparison.seeds import SAID, over_seeds
from ddpm_cli.comparison.table import Comparison, compare

LOSSES = {0.001: (0.5, 0.56, 0.47), 0.0001: (0.9, 0.7, 0.8)}


def seeded(place: Path) -> list[Path]:
    """Of two learning rates three seeds each, and evaluations of which a higher value is the better one."""
    runs = []
    for lr, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            heldout = [loss + 0.1]
            lines = metrics([1.0] * 9 + [loss], heldout=heldout)
            runs.append(write_run(place / str(len(runs)), config(seed=seed, optimizer__lr=lr), lines))
            write_evaluation(runs[-1], "one", [figure("precision1k", 1 - loss, metric="precision_recall")])
    return runs


def column(comparison: Comparison, heading: str) -> list[str]:
    (found,) = (column for column in comparison.columns if column.heading == heading)
    return [f"{cell.text}{'*' if cell.best else ''}" for cell in found.cells]


def test_a_row_for_each_group_has_the_mean_and_the_deviation_of_its_runs(tmp_path: Path):
    seeded(tmp_path)
    means = over_seeds(compare([tmp_path]))
    assert means is not None
    assert [row.name for row in means.runs] == ["0 1 2", "3 4 5"]
    assert column(means, "seeds") == ["0 1 2", "0 1 2"]
    assert column(means, "lr") == ["0.001", "0.0001"]
    expected = [f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}" for losses in LOSSES.values()]
    assert column(means, "final loss") == [f"{expected[0]}*", expected[1]]
    assert column(means, "precision1k") == ["0.4900 ± 0.0458*", "0.2000 ± 0.1000"], "of which more is better"
    heldout = column(means, "held-out loss")
    assert heldout[0].startswith("0.6100 ± 0.0458")
    assert not any(text.endswith("*") for text in heldout), "the seed decides which images are held out"


def test_runs_that_are_not_finished_or_alone_change_no_mean(tmp_path: Path):
    seeded(tmp_path)
    before = over_seeds(compare([tmp_path]))
    write_run(tmp_path / "6", config(seed=3, optimizer__lr=0.001), metrics([77.0]))
    write_run(tmp_path / "7", None, [], preview=None, result=result(["optimizer.lr=0.001"], error="not finite"))
    write_run(tmp_path / "8", config(seed=3, schedule__s=0.1), metrics([1.0] * 9 + [0.6]))
    means, comparison = over_seeds(compare([tmp_path])), compare([tmp_path])
    assert before is not None
    assert means is not None
    assert len(comparison.runs) == 9
    assert [row.name for row in means.runs] == ["0 1 2", "3 4 5"]
    losses = [[text.rstrip("*") for text in column(each, "final loss")] for each in (before, means)]
    assert losses[0] == losses[1]


def test_where_nothing_differs_in_the_seed_alone_there_is_nothing_to_say(tmp_path: Path):
    """Nor of a run that has been trained twice."""
    for i, lr in enumerate((1e-3, 1e-4)):
        write_run(tmp_path / str(i), config(seed=i, optimizer__lr=lr), metrics([1.0] * 10))
        write_run(tmp_path / f"{i}_again", config(seed=i, optimizer__lr=lr), metrics([1.0] * 10))
    assert over_seeds(compare([tmp_path])) is None
    assert over_seeds(Comparison(tmp_path, [], [])) is None
    assert SAID not in run("compare", str(tmp_path), cwd=tmp_path).stdout


def test_many_seeds_are_counted(tmp_path: Path):
    for seed in range(9):
        write_run(tmp_path / str(seed), config(seed=seed), metrics([1.0] * 10))
    means = over_seeds(compare([tmp_path]))
    assert means is not None
    assert column(means, "seeds") == ["9 of them"]


def test_the_command_and_a_sweep_s_end_show_it(tmp_path: Path):
    runs = seeded(tmp_path)
    done = run("compare", ".", cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table = lines[lines.index(SAID) + 1 :][:3]
    assert table[0].split()[:3] == ["run", "seeds", "lr"]
    assert table[1].split()[:7] == ["0", "1", "2", "0", "1", "2", "0.001"]
    compared = compare_sweep(tmp_path, runs, width=100)
    assert compared is not None
    assert compared.lines[:4] == [SAID, *table]
    narrow = compare_sweep(tmp_path, runs, width=50)
    assert narrow is not None
    assert max(map(len, narrow.lines[:4])) <= 50
    assert narrow.lines[-1] == f"2 more columns do not fit: see {tmp_path}/compare.md"
    _, _, of_seeds = (tmp_path / "compare.md").read_text(encoding="utf-8").partition(f"\n{SAID}:\n\n")
    assert of_seeds.splitlines()[2].startswith("| 0 1 2 | 0 1 2 | 0.001 | **0.5100 ± 0.0458** |")
