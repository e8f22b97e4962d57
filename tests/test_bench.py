"""scripts/bench on the smallest of networks: what it writes, and that it compares only what is equal."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import __main__ as bench
from bench import distances, network, peers, processes, rows, small, tables
from bench.cases import CASES, Place
from bench.clock import Contestant, entries, race

ROWS = ("arithmetic", "network", "training", "forward", "shares", "sampling", "evaluation")
PEERS = ["diffusers", "denoising-diffusion-pytorch"]


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("bench") / "figures.json"
    only = [word for row in ROWS for word in ("--only", row)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--device=cpu", "--config=tiny", "--quick", "--print", f"--out={out}", *only],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(processes.ROOT / "tests")},
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()) | {"printed": done.stdout}


@pytest.mark.slow
def test_everybody_has_figures_in_every_row(figures: dict):
    assert figures["left_out"] == []  # the extra `test` has the peers
    found = figures["configs"]["tiny"]["entries"]
    assert [entry for entry in found if "failure" in entry] == []
    everybody = ["ours", *PEERS]
    for row in ("network", "training", "forward", "sampling"):
        assert [entry["who"] for entry in found if entry["row"] == row] == everybody
    for entry in (*found, *figures["once"]):
        if entry["row"] != "network":
            assert 0 <= entry["low"] <= entry["median"] <= entry["high"]
        assert ("ratio" in entry) == (entry["row"] in ("training", "forward", "sampling") and entry["who"] in PEERS)
    shares = [entry["who"] for entry in found if entry["row"] == "share of a step"]
    assert shares == ["ours, not the network", "ours, waiting for data"]
    assert [entry["who"] for entry in figures["once"]] == ["matrix product", "convolution"]
    assert figures["whole"] == []  # as it was quick


@pytest.mark.slow
def test_shares_of_an_evaluation_are_of_one_whole(figures: dict):
    whole, *parts = figures["evaluation"]
    assert (whole["who"], whole["drawn"]["images"], whole["drawn"]["calls"]) == ("all but sampling", 64, 20)
    assert {entry["who"] for entry in parts} == {"features", "reference", "figures"}
    assert sum(entry["median"] for entry in parts) == pytest.approx(whole["median"])
    assert 0 < whole["median"] < 100
    assert "64 images in 20 calls each" in figures["printed"]


@pytest.mark.slow
def test_ours_and_diffusers_network_are_one(figures: dict):
    sizes = [entry for entry in figures["configs"]["tiny"]["entries"] if entry["row"] == "network"]
    ours, diffusers, other = ({k: v for k, v in entry.items() if k != "who"} for entry in sizes)
    assert ours == diffusers
    assert ours["parameters"] != other["parameters"]
    assert ours["training_flops"] > 2 * ours["forward_flops"] > 0


@pytest.mark.slow
def test_the_table_names_machine_command_and_everybody(figures: dict):
    for said in (torch.__version__, "scripts/bench --device cpu", *PEERS, "% of the matrix product", "CPU cores"):
        assert said in figures["printed"]


@pytest.mark.slow
def test_networks_are_counted_printed_and_written(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which the script sets
    out = tmp_path / "figures.json"
    told = ["--device=cpu", "--config=tiny", "--quick", "--print", f"--out={out}", "--only=network"]
    monkeypatch.setattr(sys, "argv", ["scripts/bench", *told])
    with warnings.catch_warnings():
        bench.main()
    (found,) = (case["entries"] for case in json.loads(out.read_text())["configs"].values())
    assert [entry["who"] for entry in found] == ["ours", *PEERS]
    printed = capsys.readouterr().out
    for said in (torch.__version__, "scripts/bench --device cpu", *PEERS):
        assert said in printed


def test_other_sizes_are_not_compared(tmp_path: Path):
    place = Place(CASES["tiny"], "cpu", "fp32", tmp_path)
    ours = network.sizes(place, "ours")
    elsewhere = replace(CASES["tiny"], overrides=(*CASES["tiny"].overrides, "model.num_res_blocks=2"))
    theirs = network.sizes(replace(place, case=elsewhere), "diffusers")
    with pytest.raises(network.DifferentNetworksError, match="parameters: ours 44,969, diffusers'"):
        network.check_same({"ours": ours, "diffusers": theirs})
    with pytest.raises(network.DifferentNetworksError, match="forward_flops"):
        network.check_same({"ours": ours, "diffusers": ours | {"forward_flops": ours["forward_flops"] + 2}})
    network.check_same({"ours": ours})


@pytest.mark.parametrize(
    "name", ["digits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cifar10", "folder_64"))]
)
def test_the_networks_of_every_case_are_equal(name: str, tmp_path: Path):
    place = Place(CASES[name], "cpu", "fp32", tmp_path)
    counted = {who: network.sizes(place, who) for who in ("ours", "diffusers")}
    network.check_same(counted)
    if name == "cifar10":
        assert counted["ours"]["parameters"] == 35_746_307


def test_who_fails_leaves_the_race_to_the_others():
    turns = []

    def failing():
        raise RuntimeError("no memory")

    contestants = [
        Contestant("ours", 2.0, lambda: turns.append, reference=True),
        Contestant("broken", 1.0, failing),
        Contestant("peer", 4.0, lambda: lambda repetitions: None),
    ]
    results = race(contestants, "cpu", repetitions=3, rounds=2)
    assert turns == [1, 3, 3, 3]  # the first repetition, a warm-up, two rounds
    ours, broken, peer = entries("row", "images/s", results, 3)
    assert broken == {"row": "row", "who": "broken", "unit": "images/s", "failure": "RuntimeError: no memory"}
    assert "ratio" not in ours
    expected = [2.0 / 4.0 * theirs / own for theirs, own in zip(results[2].seconds, results[0].seconds, strict=True)]
    assert peer["ratio"]["low"] == pytest.approx(min(expected))


def test_frechet_distances_are_timed_beside_the_peers(monkeypatch):
    for name, count in (("DIMENSIONS", 32), ("ENOUGH", 80), ("FEW", 20)):
        monkeypatch.setattr(distances, name, count)
    found = distances.entries(rounds=3)
    assert [(entry["who"], entry["rounds"]) for entry in found] == [
        ("ours", 3),
        ("ours, from 20 images", 3),
        ("torch-fidelity", 1),
    ]
    assert "ratio" in found[2]
    assert {entry["row"] for entry in found} == {"Frechet distance in 32 dimensions"}


def test_a_missing_peer_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr(peers, "version", lambda package: None if package == "accelerate" else "1")
    assert peers.there() == []
    assert peers.missing("diffusers") == ["accelerate"]


def test_a_table_is_written_when_all_of_it_has_been_measured(tmp_path: Path, monkeypatch):
    document = tmp_path / "performance.md"
    document.write_text(tables.DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tables, "DOCUMENT", document)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    entry = {"row": "of a row", "who": "ours", "unit": "s", "median": 1.5, "low": 1, "high": 2}
    measured = {"evaluation": lambda place, effort: [entry], "frechet": lambda place, effort: [entry]}
    monkeypatch.setattr(rows, "OF_EVALUATION", measured)
    before = document.read_text(encoding="utf-8")
    for told, written in ((["evaluation"], 0), (["evaluation", "frechet"], 2)):
        only = [word for row in told for word in ("--only", row)]
        monkeypatch.setattr(sys, "argv", ["scripts/bench", "--device=cpu", "--config=tiny", *only])
        with warnings.catch_warnings():
            bench.main()
        text = document.read_text(encoding="utf-8")
        assert text.count("| of a row | ours | 1.5 s (1 to 2) |") == written
    head, _, tail = before.partition(
        "<!-- scripts/bench --device cpu --only evaluation --only frechet writes from here"
    )
    assert text.startswith(head)
    assert text.endswith(tail.partition("<!-- to here")[2])


@pytest.mark.slow
def test_tables_have_their_places_in_the_document(figures: dict, tmp_path: Path, monkeypatch):
    document = tmp_path / "performance.md"
    document.write_text(tables.DOCUMENT.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tables, "DOCUMENT", document)
    tiny = figures["configs"]["tiny"]
    for device in ("cpu", "cuda"):
        configs = dict.fromkeys(("digits", "cifar10", "folder_64"), tiny)
        tables.keep(figures | {"device": device, "configs": configs}, ["once", "evaluation", "configs"])
    assert document.read_text(encoding="utf-8").count("| training | denoising-diffusion-pytorch |") == 6
    assert "not measured yet" not in document.read_text(encoding="utf-8")


def test_small_images_are_timed_for_ours_and_diffusers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(small, "SHAPES", ((8, 2),))
    monkeypatch.setattr(small, "IMAGES", 2)
    found = list(small.measured(Place(CASES["tiny"], "cpu", "fp32", tmp_path), rounds=2))
    assert [(entry["row"], entry["who"], "ratio" in entry) for entry in found] == [
        ("8 x 8, batch 2: forward", "ours", False),
        ("8 x 8, batch 2: forward", "diffusers", True),
        ("8 x 8, batch 2: forward and backward", "ours", False),
        ("8 x 8, batch 2: forward and backward", "diffusers", True),
    ]
    assert all(entry["low"] > 0 for entry in found)
