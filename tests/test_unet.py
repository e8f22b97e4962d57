"""The U-Net against diffusers' network of the same architecture, and what it refuses."""

import math

import pytest
import torch
from diffusers_network import diffusers_twin
from openai_network import fill
from torch import nn

from ddpm_cli.models.blocks import Attention, Block, halve
from ddpm_cli.models.unet import UNet


def test_the_cifar10_network_has_ddpms_number_of_parameters():
    assert sum(p.numel() for p in UNet().parameters()) == 35_746_307


CIFAR10 = {
    "image_size": 32, "in_channels": 3, "base_channels": 128, "channel_mults": (1, 2, 2, 2), "num_res_blocks": 2,
    "attention_resolutions": (16,), "norm_groups": 32,
}  # fmt: skip
SMALL = {
    "image_size": 16, "in_channels": 1, "base_channels": 32, "channel_mults": (1, 2, 2), "num_res_blocks": 1,
    "attention_resolutions": (8, 4), "norm_groups": 8,
}  # fmt: skip
# What separates other networks from DDPM's, and what guided-diffusion's have of it.
OPTIONS = [
    {"norm_eps": 1e-2},  # other than 1e-6 by more than rounding
    {"time_cos_first": True},
    {"time_freq_shift": 0},
    {"downsample_padding": "symmetric"},
    {"head_channels": 16},
    {"scale_shift_norm": True},
    {"resblock_updown": True},
    {"num_classes": 3, "null_label": False},
    {"learn_variance": True},
]
ADM = {
    "norm_eps": 1e-5, "time_cos_first": True, "time_freq_shift": 0, "head_channels": 16, "scale_shift_norm": True,
    "resblock_updown": True, "num_classes": 3, "null_label": False, "learn_variance": True,
}  # fmt: skip
IMPROVED = {
    "norm_eps": 1e-5, "time_cos_first": True, "time_freq_shift": 0, "downsample_padding": "symmetric",
    "head_channels": 32, "scale_shift_norm": True, "learn_variance": True,
}  # fmt: skip


def filled(**options) -> UNet:
    """A network with weights everywhere: a fresh one is the zero function, which would prove nothing."""
    torch.manual_seed(0)
    unet = UNet(**options).eval()
    fill(unet)
    return unet


def named(options: dict) -> str:
    return "-".join(options) if len(options) < 3 else "together"


@pytest.mark.parametrize(
    "options",
    [pytest.param(CIFAR10, marks=pytest.mark.slow), SMALL]
    + [SMALL | option for option in OPTIONS]
    + [SMALL | ADM, SMALL | IMPROVED, SMALL | ADM | {"image_size": (16, 24), "in_channels": 3}],
    ids=lambda options: named({k: v for k, v in options.items() if SMALL.get(k, CIFAR10.get(k)) != v}) or "ddpm",
)
def test_forward_is_diffusers_forward(options: dict):
    unet = filled(**options)
    size = options["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    twin = diffusers_twin(unet, options)
    labels = torch.tensor([2, 0]) if "num_classes" in options else None
    for times in ((0, 1), (3, 977), (250, 999)):
        x, t = torch.randn(2, options["in_channels"], height, width), torch.tensor(times)
        with torch.no_grad():
            found, expected = unet(x, t, labels), twin(x, t, labels).sample
        assert found.shape[1] == options["in_channels"] * (2 if options.get("learn_variance") else 1)
        assert expected.std() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", OPTIONS[:-2], ids=named)
def test_every_option_changes_what_comes_out(option: dict):
    """With the same weights wherever there are as many: else the comparison above would not see an option ignored."""
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 977])
    with torch.no_grad():
        assert (filled(**SMALL)(x, t) - filled(**SMALL, **option)(x, t)).abs().max() > 1e-3


def test_t_is_scaled_before_it_is_embedded():
    plain, scaled = filled(**SMALL), filled(**SMALL, time_scale=0.25)
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        found, expected = scaled(x, torch.tensor([4, 3996])), plain(x, torch.tensor([1, 999]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_network_without_a_null_label_takes_no_image_without_a_label():
    unet = filled(**SMALL, num_classes=3, null_label=False)
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="needs a label for each image"):
        unet(x, t)
    with pytest.raises(IndexError):
        unet(x, t, torch.tensor([-1, 0]))
    with_null = filled(**SMALL, num_classes=3)
    with torch.no_grad():
        assert torch.equal(unet(x, t, torch.tensor([2, 0])), with_null(x, t, torch.tensor([2, 0])))


def test_a_fresh_network_is_the_zero_function_and_learns():
    unet = UNet(8, 1, 32, (1, 2), 1, (4,), 0.0, norm_groups=8)
    x = torch.randn(2, 1, 8, 8)
    out = unet(x, torch.tensor([0, 9]))
    assert out.abs().max() == 0
    (out - x).square().mean().backward()
    assert unet.conv_out.weight.grad is not None
    assert unet.conv_out.weight.grad.abs().max() > 0


def test_every_block_starts_as_the_identity_of_its_skip():
    block = UNet(8, 1, 32, (1, 2), 1, (), 0.0, norm_groups=8).down[0]
    assert isinstance(block, Block)
    x = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(block(x, torch.randn(2, 128)), x)


def test_head_channels_need_not_divide_levels_without_attention():
    unet = UNet(16, 1, 24, (1, 2, 4), 1, (8,), 0.0, head_channels=16, norm_groups=8)
    heads = [layer.attention.num_heads for layer in (*unet.down, *unet.middle, *unet.up) if has_attention(layer)]
    assert heads == [3, 6, 3, 3]


def has_attention(layer: nn.Module) -> bool:
    return isinstance(layer, Block) and isinstance(layer.attention, Attention)


def test_a_fresh_network_of_adms_kind_is_the_zero_function_and_its_blocks_the_identity():
    unet = UNet(**SMALL, **ADM)
    assert unet(torch.randn(2, 1, 16, 16), torch.tensor([0, 9]), torch.tensor([0, 1])).abs().max() == 0
    (halving,) = [layer for layer in unet.down[:3] if isinstance(layer, Block) and layer.resize is halve]
    x, time = torch.randn(2, 32, 16, 16), torch.randn(2, 128)
    torch.testing.assert_close(halving(x, time), nn.functional.avg_pool2d(x, 2))


def test_non_square_images_and_several_heads():
    unet = UNet((8, 16), 3, 32, (1, 2), 1, (4,), 0.0, num_heads=4, norm_groups=8)
    nn.init.normal_(unet.conv_out.weight)
    assert unet(torch.randn(2, 3, 8, 16), torch.tensor([1, 2])).shape == (2, 3, 8, 16)


def test_dropout_is_there_in_training_only():
    unet = UNet(8, 1, 32, (1, 2), 1, (4,), 0.5, norm_groups=8)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    assert not torch.equal(unet(x, t), unet(x, t))
    unet.eval()
    assert torch.equal(unet(x, t), unet(x, t))


def test_the_time_embedding_is_ddpms():
    embedded = UNet(base_channels=128, channel_mults=(1,), attention_resolutions=())._embed(torch.tensor([0, 5]))
    assert embedded[0, :64].tolist() == [0] * 64
    assert embedded[0, 64:].tolist() == [1] * 64
    assert embedded[1, 0].item() == pytest.approx(-0.95892, abs=1e-5)  # sin(5): the first frequency is 1
    assert embedded[1, 63].item() == pytest.approx(5e-4, rel=1e-3)  # sin(5 / 10000): the last is 1 / 10000


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image_size": 30}, "image_size 30 cannot be halved 3 times.*24 or 32 would do"),
        ({"image_size": (32, 4)}, "image_size 4 cannot.*8 would do"),
        ({"attention_resolutions": (7,)}, r"attention_resolutions has 7, .* \[32, 16, 8, 4\]"),
        ({"base_channels": 100}, "norm_groups 32 does not divide the 100 channels"),
        ({"num_heads": 3}, "num_heads 3 does not divide the 128 channels"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1"),
        ({"channel_mults": ()}, "at least one level"),
        ({"base_channels": 3, "norm_groups": 1}, "base_channels must be even"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"norm_eps": 0.0}, "norm_eps must be positive, got 0"),
        ({"norm_eps": math.nan}, "norm_eps must be positive, got nan"),
        ({"time_scale": -1.0}, "time_scale must be positive, got -1"),
        ({"time_scale": math.inf}, "time_scale must be positive, got inf"),
        ({"time_freq_shift": 2}, "time_freq_shift must be 0 or 1, got 2"),
        ({"downsample_padding": "valid"}, "downsample_padding must be same or symmetric, got 'valid'"),
        ({"downsample_padding": "symmetric", "resblock_updown": True}, "has no effect with resblock_updown=true"),
        ({"head_channels": 0}, "head_channels must be at least 1, got 0"),
        ({"head_channels": 64, "num_heads": 4}, "num_heads 4 and head_channels 64 set the same"),
        (
            {"head_channels": 48},
            "head_channels 48 does not divide the 256 channels of the level of 16 pixels; 32, 64, 128, 256 would do",
        ),
        (
            {"channel_mults": (1, 2, 3), "head_channels": 256},
            "head_channels 256 does not divide the 384 channels of the level of 8 pixels; 16, 32, 64, 128 would do",
        ),
        ({"null_label": False}, "null_label=false has no effect without labels"),
    ],
)
def test_impossible_networks_are_refused(change: dict, says: str):
    with pytest.raises(ValueError, match=says):
        UNet(**change)


def test_checkpointed_activations_give_the_same_gradients_from_less_memory():
    torch.manual_seed(0)
    model = UNet(16, 1, 16, (1, 2), 1, (8,), 0.3, norm_groups=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(4, 1, 16, 16), torch.arange(4)
    kept, gradients = [], []
    for model.activation_checkpointing in (False, True):
        bytes_kept = 0

        def pack(tensor):
            nonlocal bytes_kept
            bytes_kept += tensor.numel() * tensor.element_size()
            return tensor

        torch.manual_seed(1)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x, t).square().sum()
        loss.backward()
        kept.append(bytes_kept)
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert kept[1] < kept[0] / 2
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
