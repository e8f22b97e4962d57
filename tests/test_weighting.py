"""Weights against their papers' formulas, and against themselves under another prediction."""

import pytest
import torch
from ids import named
from torch import Tensor

from ddpm_cli.diffusion.prediction import X0, Epsilon, Preconditioned, Velocity
from ddpm_cli.diffusion.schedule import cosine, linear
from ddpm_cli.diffusion.weighting import EDM, P2, MinSNR, TruncatedSNR, Uniform, Weighting

LOG_SNR = torch.cat([linear().log_snr, cosine().log_snr])
SNR = LOG_SNR.exp()


def found(function: Weighting, prediction: Epsilon | X0 | Velocity) -> Tensor:
    return function(LOG_SNR, prediction.log_scale(LOG_SNR))


@pytest.mark.parametrize(
    ("function", "prediction", "expected"),
    [
        # Hang et al. 2023, section 3.4: for x_0, eps and v.
        (MinSNR(gamma=5.0), X0(), SNR.clamp(max=5)),
        (MinSNR(gamma=5.0), Epsilon(), (5 / SNR).clamp(max=1)),
        (MinSNR(gamma=5.0), Velocity(), SNR.clamp(max=5) / (SNR + 1)),
        # Choi et al. 2022, eq. 8, for eps.
        (P2(gamma=1.0, k=1.0), Epsilon(), 1 / (1 + SNR)),
        (P2(gamma=0.5, k=2.0), Epsilon(), (2 + SNR) ** -0.5),
        # Salimans & Ho 2022, section 4: max(||x_0 error||^2, ||eps error||^2).
        (TruncatedSNR(), X0(), SNR.clamp(min=1)),
        (TruncatedSNR(), Epsilon(), (1 / SNR).clamp(min=1)),
        # Karras et al. 2022, table 1: (s^2 + d^2) / (s d)^2 on the error of x_0, with s^2 = 1 / SNR; 1 / c_out^2.
        (EDM(sigma_data=0.5), X0(), (1 / SNR + 0.25) / (0.25 / SNR)),
        (EDM(sigma_data=0.5), Preconditioned(sigma_data=0.5), torch.ones_like(SNR)),
    ],
)
def test_weights_are_the_papers(function, prediction, expected: Tensor):
    torch.testing.assert_close(found(function, prediction), expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("function", [MinSNR(), P2(), TruncatedSNR()], ids=["min_snr", "p2", "truncated_snr"])
def test_a_weight_means_the_same_error_for_every_prediction(function):
    """weight * error(output) is one number: weight * scale * error(x_0)."""
    of_x_0 = found(function, X0())
    for prediction in (Epsilon(), Velocity()):
        torch.testing.assert_close(found(function, prediction) * prediction.log_scale(LOG_SNR).exp(), of_x_0)


def test_simple_is_one_for_every_prediction():
    for prediction in (Epsilon(), X0(), Velocity()):
        assert torch.equal(found(Uniform(), prediction), torch.ones_like(SNR))


@pytest.mark.parametrize(
    "function", [Uniform(), MinSNR(), P2(), TruncatedSNR()], ids=["uniform", "min_snr", "p2", "truncated_snr"]
)
@pytest.mark.parametrize("prediction", [X0(), Velocity()], ids=named)
def test_weights_are_finite_in_pure_noise(function, prediction):
    log_snr = cosine(zero_terminal_snr=True).log_snr
    weights = function(log_snr, prediction.log_scale(log_snr))
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: MinSNR(gamma=0.0), "gamma must be positive, got 0"),
        (lambda: P2(gamma=-1.0), "gamma must not be negative, got -1"),
        (lambda: P2(k=0.0), "k must be positive, got 0"),
    ],
)
def test_impossible_values_are_refused(call, says: str):
    with pytest.raises(ValueError, match=says):
        call()
