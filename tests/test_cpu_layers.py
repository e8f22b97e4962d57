"""The layers that are computed another way on a CPU against torch's own, and where they are torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_cli.models import cpu_layers
from ddpm_cli.models.cpu_layers import Conv3x3, GroupNorm, weight_gradient
from ddpm_cli.models.unet import UNet


@pytest.fixture
def everywhere(monkeypatch):
    """Matrix products whatever the processor and however few the channels."""
    monkeypatch.setattr(cpu_layers, "AVX2", True)
    monkeypatch.setattr(cpu_layers, "LEAST_CHANNELS", 1)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 0), (2, 1)])
@pytest.mark.parametrize("block", [1, 300, 1000, 2**20], ids=["a row", "rows", "images", "all at once"])
def test_the_gradient_of_a_weight_is_the_convolutions(stride: int, padding: int, block: int, monkeypatch):
    """By autograd in float64; 5 images of 7 x 6 or less, so that no block but the last divides them."""
    monkeypatch.setattr(cpu_layers, "BLOCK", block)
    torch.manual_seed(0)
    x, weight = channels_last(5, 3, 7, 6), torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(x.double(), weight, stride=stride, padding=padding)
    gradient = channels_last(*out.shape)
    (expected,) = torch.autograd.grad(out, weight, gradient.double())
    for layout in (torch.channels_last, torch.contiguous_format):
        found = weight_gradient(
            x.contiguous(memory_format=layout),
            gradient.contiguous(memory_format=layout),
            stride=stride,
            padding=padding,
        )
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_a_convolution_and_its_gradients_are_torchs(frozen: str | None, everywhere):
    torch.manual_seed(0)
    layer, x = Conv3x3(6, 8, stride=2, padding=0), channels_last(2, 6, 9, 9).requires_grad_()
    if frozen is not None:
        layer.get_parameter(frozen).requires_grad_(False)
    leaves = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    found, expected = layer(x), nn.Conv2d.forward(layer, x)
    assert torch.equal(found, expected)
    assert "_Convolution" in found.grad_fn.name()
    gradient = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, gradient), torch.autograd.grad(expected, leaves, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_convolution_is_torchs_own_compiled_in_half_precision_and_for_few_channels(everywhere, monkeypatch):
    layer, x = Conv3x3(6, 8), channels_last(2, 6, 8, 8)

    def is_torchs(x: Tensor) -> bool:
        return "_Convolution" not in layer(x).grad_fn.name()

    assert not is_torchs(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_torchs(x)
    with monkeypatch.context() as compiling:
        compiling.setattr(torch.compiler, "is_compiling", lambda: True)
        assert is_torchs(x)
    for name, value in (("AVX2", False), ("LEAST_CHANNELS", 7)):
        with monkeypatch.context() as other:
            other.setattr(cpu_layers, name, value)
            assert is_torchs(x)


@pytest.mark.parametrize(("channels", "side"), [(32, 16), (32, 32), (64, 16)], ids=["narrow", "large", "wide"])
def test_a_group_norm_and_its_gradients_are_torchs_and_channels_last(channels: int, side: int):
    torch.manual_seed(0)
    layer, x = GroupNorm(8, channels, eps=1e-6), channels_last(3, channels, side, side).requires_grad_()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    leaves = [x, *layer.parameters()]
    found, expected = layer(x), F.group_norm(x.double(), 8, layer.weight.double(), layer.bias.double(), layer.eps)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = channels_last(*found.shape)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, gradient),
        torch.autograd.grad(expected, leaves, gradient.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_network_learns_the_same_from_matrix_products(everywhere, monkeypatch):
    """Also where activations are computed again, and with weights that are not channels last, as FSDP leaves them."""
    torch.manual_seed(0)
    unet = UNet(16, 1, 16, (1, 2), 1, (8,), 0.0, norm_groups=4)
    for parameter in unet.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(4, 1, 16, 16), torch.arange(4)

    def gradients() -> list:
        unet.zero_grad()
        unet(x, t).square().sum().backward()
        return [parameter.grad for parameter in unet.parameters()]

    found = gradients()
    unet.activation_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(gradients(), found, strict=True))
    monkeypatch.setattr(cpu_layers, "AVX2", False)
    expected = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(cpu_layers, "AVX2", True)
    for parameter in unet.parameters():
        parameter.data = parameter.data.contiguous()
    torch.testing.assert_close(gradients(), expected, rtol=1e-4, atol=1e-4)
