"""Averages of the weights: several at once are what each would be alone, and all of them are resumed bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm_cli import checkpoint
from ddpm_cli.checkpoint import Metadata
from ddpm_cli.data.datasets import digits
from ddpm_cli.data.loader import BatchLoader
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.schedule import cosine
from ddpm_cli.ema.ema import EMA
from ddpm_cli.ema.posthoc import exponent
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.training.optimizers import adamw
from ddpm_cli.training.train_state import capture, restore
from ddpm_cli.training.trainer import Trainer
from ddpm_cli.training.trainer_config import TrainerConfig


def network() -> nn.Module:
    """Parameters of several shapes, one in channels-last format, and buffers that are saved."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)).to(memory_format=torch.channels_last)


def walk(model: nn.Module, steps: int) -> list[list[Tensor]]:
    """The parameters of every step of a random walk; the model is left where it ends."""
    generator = torch.Generator().manual_seed(1)
    seen = []
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        for buffer in model.buffers():
            buffer.add_(1)
        seen.append([parameter.detach().clone() for parameter in model.parameters()])
    return seen


def follow(model: nn.Module, ema: EMA, steps: int) -> None:
    seen = walk(model, steps)
    for values in seen:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.data.copy_(value)
        ema.update(model)


def test_several_averages_are_each_what_it_would_be_alone():
    decays = (0.9, 0.99, 0.0, 0.5)
    model = network()
    together, alone = EMA(model, decays=decays), [EMA(model, decays=[decay]) for decay in decays]
    for _ in range(5):
        walk(model, 1)
        for ema in (together, *alone):
            ema.update(model)
    state = together.state_dict()
    assert len(state) == 3 * len(model.state_dict())
    for decay, single in zip(decays, alone, strict=True):
        for name, value in single.model.state_dict().items():
            found = together.model.state_dict()[name] if decay == decays[0] else state[f"ema.{decay}.{name}"]
            assert torch.equal(found, value), f"{decay} {name}"
    for name, value in model.state_dict().items():
        assert torch.equal(state[f"ema.0.0.{name}"], value), "an average of decay 0 is the network, buffers and all"


def test_a_power_function_average_is_the_weighted_sum_of_everything_it_saw():
    """theta(i) counts by the integral of tau^gamma over the i-th update, from i - 1 to i (eq. 121)."""
    model = network()
    ema = EMA(model, posthoc=[0.05, 0.2])
    seen = walk(network(), 300)
    for values in seen:
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.data.copy_(value)
        ema.update(model)
    i = torch.arange(301, dtype=torch.float64) / 300
    names = [name for name, _ in model.named_parameters()]
    for width in (0.05, 0.2):
        weights = (i ** (exponent(width) + 1)).diff()
        assert weights.sum().item() == pytest.approx(1)
        for place, name in enumerate(names):
            values = torch.stack([step[place] for step in seen]).double()
            expected = torch.tensordot(weights, values, dims=1).float()
            torch.testing.assert_close(ema.state_dict()[f"posthoc.{width}.{name}"], expected, rtol=1e-4, atol=2e-5)


def test_the_first_update_of_a_power_function_average_forgets_the_random_start():
    model = network()
    ema = EMA(model, posthoc=[0.1])
    walk(model, 1)
    ema.update(model)
    for name, value in ema.snapshot().items():
        assert torch.equal(value, model.get_parameter(name.removeprefix("posthoc.0.1.")))


def test_averages_lie_in_memory_as_the_parameters_do():
    model = network()
    ema = EMA(model, decays=[0.9, 0.99], posthoc=[0.1])
    for prefix in ("ema.0.99.", "posthoc.0.1."):
        for name, parameter in model.named_parameters():
            assert ema.state_dict()[f"{prefix}{name}"].stride() == parameter.stride()


def test_a_state_comes_back_whatever_its_layout_and_no_other_is_taken():
    model, options = network(), {"decays": [0.9, 0.99], "posthoc": [0.05, 0.1]}
    ema, again = EMA(model, **options), EMA(model, **options)
    follow(model, ema, 4)
    state = {name: value.clone().contiguous() for name, value in ema.state_dict().items()}
    again.model.load_state_dict(ema.model.state_dict())
    again.load_state_dict(state)
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name])
        assert value.stride() == ema.state_dict()[name].stride()
    name = "posthoc.0.05.0.weight"
    for wrong, says in (
        ({n: v for n, v in state.items() if n != name}, f"{name} is missing"),
        (state | {"ema.0.9.0.weight": state[name]}, r"ema\.0\.9\.0\.weight has no place"),
        (state | {name: torch.zeros(())}, r"0\.weight is \[\], should be \[4, 3, 3, 3\]"),
    ):
        with pytest.raises(ValueError, match=says):
            again.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decays": []}, "decays must have at least one"),
        ({"decays": [0.9, 1.0]}, r"decays must lie in \[0, 1\), got 1"),
        ({"decays": [-0.1]}, r"decays must lie in \[0, 1\), got -0.1"),
        ({"decays": [float("nan")]}, "decays must lie"),
        ({"decays": [0.9, 0.99, 0.9]}, r"decays must differ from each other, got \[0.9, 0.99, 0.9\]"),
        ({"posthoc": [0.1, 0.1]}, "posthoc must differ"),
        ({"posthoc": [0.3]}, r"posthoc must be at least 0.001 and below 0.2887 .*, got 0.3"),
        ({"posthoc": [0.0]}, "posthoc must be at least"),
        ({"posthoc": [0.1 + 0.01 * i for i in range(9)]}, "posthoc must have at most 8 lengths, got 9"),
    ],
)
def test_averages_that_cannot_be_are_refused(options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        EMA(nn.Linear(1, 1), **options)


def make_trainer(steps: int = 6) -> Trainer:
    compute = choose_compute("cpu", "fp32")
    torch.manual_seed(0)
    unet = UNet(8, 1, 8, (1, 2), 1, (4,), 0.1, norm_groups=4)
    compute.place(unet)
    return Trainer(
        DDPM(unet, cosine(100)),
        BatchLoader(digits(image_size=8), 8, seed=0),
        optimizer=adamw(unet.parameters(), lr=2e-3),
        ema=EMA(unet, decays=[0.99, 0.9], posthoc=[0.05, 0.1]),
        config=TrainerConfig(steps=steps, batch_size=8, log_every=1, device="cpu"),
        compute=compute,
        seed=0,
    )


def test_all_averages_are_resumed_bit_for_bit(tmp_path: Path):
    straight, stopped, resumed = make_trainer(), make_trainer(steps=3), make_trainer()
    list(straight.run())
    list(stopped.run())
    description = Metadata(step=3, image_shape=(1, 8, 8), images=1797, config={}, versions={})
    ema, state = stopped.ema.model.state_dict(), capture(stopped)
    path = checkpoint.save(tmp_path, ema=ema, training=state, description=description)
    found = checkpoint.verify(path, *checkpoint.FILES)
    restore(resumed, checkpoint.load_training(found), checkpoint.load_ema(found))
    list(resumed.run())
    assert {name.rpartition(".conv_in")[0] for name in capture(straight) if name.endswith("conv_in.weight")} == {
        "model", "ema.0.9", "posthoc.0.05", "posthoc.0.1"
    }  # fmt: skip
    for name, value in capture(straight).items():
        assert torch.equal(value, capture(resumed)[name]), name
    for name, value in straight.ema.model.state_dict().items():
        assert torch.equal(value, resumed.ema.model.state_dict()[name]), name
