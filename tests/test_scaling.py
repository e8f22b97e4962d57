"""The arithmetic of docs/explanation/scaling.md."""

import re
from dataclasses import replace

import pytest
from scaling import tables
from scaling.__main__ import DOCUMENT
from scaling.arithmetic import FAST, Assumptions, step
from scaling.networks import networks

# Of limits in which a result is known: no latency, everything inside one machine.
GIVEN = Assumptions(hop_inside=0.0, hop_between=0.0)


@pytest.mark.slow
def test_networks_are_counted():
    small, large = networks()
    assert small.parameters == 35_746_307
    assert large.parameters == 316_112_067
    for network in networks():
        assert sum(network.layers) == network.parameters
        assert network.training == pytest.approx(3 * network.forward, rel=0.01), "twice the forward pass, and itself"


@pytest.mark.slow
def test_convolutions_are_counted_as_multiplications_and_additions():
    """About 6.1 billion multiply-adds for DDPM's CIFAR-10 network, as others count it."""
    assert networks()[0].forward / 2 == pytest.approx(6.2e9, rel=0.03)


def test_an_all_reduce_sends_twice_what_a_process_does_not_keep():
    network = networks()[0]
    for gpus in (2, 8):
        found = step(network, 128 * gpus, gpus, FAST, GIVEN)
        assert found.communication == pytest.approx(2 * (gpus - 1) / gpus * 4 * network.parameters / GIVEN.inside)
        assert 0 < found.exposed < found.communication


def test_sharding_sends_half_as_much_again():
    network = networks()[1]
    whole, parts = (step(network, 256, 8, FAST, GIVEN, shard=shard) for shard in (False, True))
    assert parts.communication == pytest.approx(1.5 * whole.communication)


def test_one_gpu_communicates_nothing():
    alone = step(networks()[0], 128, 1, FAST, Assumptions())
    assert (alone.communication, alone.exposed, alone.gathering, alone.flag) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["assumptions", "counted", "communication", "weak", "strong", "sharded", "data"])
def test_the_document_holds_what_the_script_writes(name: str, monkeypatch):
    """But for the number of kernels, which is not the same in every version of torch."""
    text = DOCUMENT.read_text(encoding="utf-8")
    documented = []
    for network in networks():
        (kernels,) = re.findall(rf"^\| {network.name}, .*GFLOP \| ([\d,]+): ", text, re.MULTILINE)
        documented.append(replace(network, kernels=int(kernels.replace(",", ""))))
        assert documented[-1].kernels == pytest.approx(network.kernels, rel=0.15)
    monkeypatch.setattr(tables, "networks", lambda: documented)
    assert "\n".join(getattr(tables, name)()) in text, "scripts/scaling makes it again"


def test_every_table_has_its_place_once():
    text = DOCUMENT.read_text(encoding="utf-8")
    begun, ended = (re.findall(pattern, text) for pattern in (r"--only (\w+) writes from here", r"to here: (\w+)"))
    assert begun == ended
    assert len(set(begun)) == len(begun) == 8
