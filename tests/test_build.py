"""What a configuration becomes: the network of anybody's own loop, mistakes before the images, options left alone."""

import copy
from pathlib import Path

import pytest
import torch
from test_configs import compose
from torch import Tensor, nn

from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.data.loader import augment
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.schedule import cosine
from ddpm_cli.distributed.process_group import World
from ddpm_cli.models.unet import UNet
from ddpm_cli.runtime.seeds import derive_seed, generator
from ddpm_cli.training.build import Training, build_training

SMALL = [
    "model.base_channels=8", "model.norm_groups=4", "model.channel_mults=[1,2]", "model.dropout=0.2",
    "trainer.batch_size=8", "trainer.steps=4", "trainer.warmup_steps=0", "trainer.lr_decay=constant",
    "trainer.device=cpu", "schedule.timesteps=50", "optimizer.lr=1e-3", "ema.decays=[0.0]", "sampler.steps=5",
    "prediction=eps", "weighting=uniform",
]  # fmt: skip


@pytest.fixture(autouse=True)
def torchs_switches(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)


def build(*overrides: str) -> Training:
    return build_training(TrainOptions(**compose("train", *SMALL, *overrides)), World())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_loop_of_ones_own_trains_what_the_trainer_trains():
    """No more than UNet(...), DDPM and torch: the same layout in memory at every step, and the same bits."""
    trainer = build().trainer
    torch.manual_seed(derive_seed(0, "weights"))
    unet = UNet(16, 1, 8, (1, 2), 1, (8,), 0.2, norm_groups=4)
    ddpm = DDPM(unet, cosine(50))
    optimizer = torch.optim.AdamW(unet.parameters(), 1e-3, weight_decay=0.0, fused=True)
    steps = trainer.run()
    for step in range(4):
        for own, average, parameter in zip(
            unet.parameters(), trainer.ema.model.parameters(), trainer.ddpm.model.parameters(), strict=True
        ):
            assert own.stride() == parameter.stride() == average.stride()
            assert torch.equal(own, parameter)
        batch = trainer.batches.batch(step)
        assert batch.pixels is not None
        source = generator(0, "diffusion", step)
        t, noise = torch.randint(50, (8,), generator=source), torch.randn(8, 1, 16, 16, generator=source)
        torch.manual_seed(derive_seed(0, "dropout", step, 0))
        optimizer.zero_grad()
        ddpm.losses(augment(batch.pixels, batch.flips), t, noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        next(steps)
    moved = [
        not torch.equal(one, other)
        for one, other in zip(unet.parameters(), build().trainer.ddpm.parameters(), strict=True)
    ]
    assert all(moved), "it has learned something"
    for name, value in unet.state_dict().items():
        assert torch.equal(value, trainer.ddpm.model.state_dict()[name]), name
        assert torch.equal(value, trainer.ema.model.state_dict()[name]), "an average of decay 0"
    for own, parameter in zip(unet.parameters(), trainer.ddpm.model.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[own][moment], trainer.optimizer.state[parameter][moment])


def test_a_network_keeps_its_layout_wherever_it_goes():
    unet = UNet(16, 3, 8, (1, 2), 1, (8,), norm_groups=4)
    kernels = [name for name, parameter in unet.named_parameters() if parameter.shape[2:] == (3, 3)]
    assert len(kernels) > 10
    loaded, double = UNet(16, 3, 8, (1, 2), 1, (8,), norm_groups=4), copy.deepcopy(unet).double()
    loaded.load_state_dict({name: value.contiguous() for name, value in unet.state_dict().items()})
    for network in (unet, copy.deepcopy(unet), double, loaded):
        for name in kernels:
            kernel = network.get_parameter(name)
            assert kernel.is_contiguous(memory_format=torch.channels_last), name
            assert torch.equal(kernel, unet.get_parameter(name))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.compile=graphs", "trainer: compile=graphs has an effect only on CUDA, not on cpu, fp32"),
        ("trainer.fsdp=true", "trainer: fsdp=true has an effect only with several processes"),
        ("trainer.device=cuda:99", "trainer: device cuda:99 was asked for"),
        ("sampler.steps=51", "sampler: .*51"),
        ("model.learn_variance=true", "model: learn_variance has no effect with a fixed variance"),
        (
            "weighting=truncated_snr prediction=v loss=vlb variance=learned_range",
            "weighting has no effect with loss=vlb",
        ),
        (
            "timestep_sampler=loss_second_moment timestep_sampler.history=0",
            "timestep_sampler: history must be at least 1",
        ),
    ],
)
def test_what_does_not_fit_is_found_before_the_images_are_read(override: str, says: str, tmp_path: Path):
    """Of a folder that is not there, which would be said otherwise: reading a large one takes hours."""
    missing = ["data=folder", f"data.path={tmp_path}/missing", "data.image_size=16", "data.channels=1", "model=unet_16"]
    with pytest.raises(ConfigError, match=says):
        build(*missing, *override.split())


def test_what_is_found_for_auto_is_returned_and_nothing_is_written_into():
    config = compose("train", *SMALL, "trainer.accumulate=auto")
    options = TrainOptions(**config)
    before = copy.deepcopy(options)
    found = build_training(options, World())
    assert options == before
    assert (options.trainer["accumulate"], found.options.trainer["accumulate"]) == ("auto", 1)
    assert found.trainer.config.accumulate == 1
    assert found.options.trainer | {"accumulate": "auto"} == options.trainer
