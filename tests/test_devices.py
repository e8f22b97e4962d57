"""Devices, and what torch says when a device has no more memory."""

import pytest
import torch

from ddpm_cli.devices import choose_compute, out_of_memory


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**60), lambda: bytearray(2**62)])
def test_no_more_memory_is_known_for_what_it_is(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert out_of_memory(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x")])
def test_other_errors_are_not(error: Exception):
    assert not out_of_memory(error)


def test_deterministic_means_torchs_own_switch(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        choose_compute("cpu").make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
