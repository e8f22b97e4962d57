"""The optimizers: torch's, to the last bit, without its copies."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ddpm_cli.training.optimizers import adam, adamw

THEIRS = {
    adam: lambda parameters: torch.optim.Adam(parameters, 1e-2, fused=True),
    adamw: lambda parameters: torch.optim.AdamW(parameters, 1e-2, weight_decay=0.1, fused=True),
}
OURS = {
    adam: lambda parameters: adam(parameters, lr=1e-2),
    adamw: lambda parameters: adamw(parameters, lr=1e-2, weight_decay=0.1),
}


def parameters(memory_format: torch.memory_format) -> list[nn.Parameter]:
    """A 3 x 3 and a 1 x 1 kernel, and a bias."""
    rng = torch.Generator().manual_seed(0)
    shapes = ((6, 5, 3, 3), (4, 6, 1, 1), (7,))
    drawn = [torch.randn(shape, generator=rng) for shape in shapes]
    return [nn.Parameter(p.to(memory_format=memory_format) if p.dim() == 4 else p) for p in drawn]


def give_gradients(to: list[nn.Parameter], step: int) -> None:
    rng = torch.Generator().manual_seed(step)
    for p in to:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=rng))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("make", [adam, adamw])
def test_steps_are_torchs_to_the_last_bit_and_no_gradient_is_copied(make, memory_format: torch.memory_format):
    ours, theirs = parameters(memory_format), parameters(memory_format)
    optimizer, reference = OURS[make](ours), THEIRS[make](theirs)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            optimizer.step()
        reference.step()
        assert "aten::clone" not in {event.key for event in seen.key_averages()}
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)
        assert mine.stride() == optimizer.state[mine]["exp_avg"].stride()
        for name, value in reference.state[other].items():
            assert torch.equal(optimizer.state[mine][name], value)
    assert optimizer.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lr": 0.0}, "lr must be positive, got 0"),
        ({"eps": 0.0}, "eps must be positive, got 0"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got 1"),
        ({"betas": (-0.1, 0.999)}, r"betas must lie in \[0, 1\), got -0.1"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
    ],
)
def test_impossible_options_of_an_optimizer_are_refused(change: dict, says: str):
    for make in (adamw, adam) if "weight_decay" not in change else (adamw,):
        with pytest.raises(ValueError, match=says):
            make(nn.Linear(1, 1).parameters(), **change)
