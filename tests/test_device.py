"""Devices, and what torch says when a device has no more memory."""

import pytest
import torch

from ddpm_cli.runtime.device import choose_compute, out_of_memory


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), lambda: bytearray(2**62)])
def test_no_more_memory_is_known_for_what_it_is(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x")])
def test_other_errors_are_not(error: Exception):
    assert not out_of_memory(error)
    assert out_of_memory(RuntimeError("could not create a primitive"))  # oneDNN, where it finds no memory of its own
    assert not out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


def test_deterministic_means_torchs_own_switches(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        choose_compute("cpu").make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_each_process_of_a_machine_has_a_gpu_that_is_its_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for local_rank in (0, 3):
        assert choose_compute("auto", "fp32", local_rank=local_rank).device == torch.device("cuda", local_rank)
    assert choose_compute("cuda:1", "fp32", local_rank=3).device == torch.device("cuda", 1)
    assert current == [torch.device("cuda", index) for index in (0, 3, 1)]
    with pytest.raises(ValueError, match=r"cuda:4 was asked for, but there are only 4 CUDA devices"):
        choose_compute("cuda", "fp32", local_rank=4)
    choose_compute("cpu")
    assert len(current) == 3
