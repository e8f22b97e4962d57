"""Losses by noise level: their means in ten equal bins of t."""

from torch import Tensor

T_BINS = 10


def mean_by_t(losses: Tensor, t: Tensor, timesteps: int) -> dict[str, float]:
    """Mean of the losses `[N]` in each bin of their t `[N]`, by the bin's first timestep; empty bins are left out."""
    bins = t * T_BINS // timesteps
    return {
        f"{-(-timesteps * i // T_BINS):04d}": losses[bins == i].mean().item()
        for i in range(T_BINS)
        if (bins == i).any()
    }
