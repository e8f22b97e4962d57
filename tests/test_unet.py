"""The U-Net against diffusers' network of the same architecture, and what it refuses."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from ddpm_cli.models.unet import Block, UNet


def test_the_cifar10_network_has_ddpms_number_of_parameters():
    assert sum(p.numel() for p in UNet().parameters()) == 35_746_307


def diffusers_twin(unet: UNet, *, image_size: int, channels: int, mults: tuple, blocks: int, attention: tuple):
    """diffusers' DDPM network of the same shape, with our weights copied into it one module after the other."""
    resolutions = [image_size // 2**level for level in range(len(mults))]
    width = unet.conv_in.out_channels
    twin = UNet2DModel(
        sample_size=image_size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=blocks,
        block_out_channels=tuple(width * mult for mult in mults),
        down_block_types=tuple("AttnDownBlock2D" if r in attention else "DownBlock2D" for r in resolutions),
        up_block_types=tuple("AttnUpBlock2D" if r in attention else "UpBlock2D" for r in reversed(resolutions)),
        attention_head_dim=None,
        norm_num_groups=unet.norm_out.num_groups,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        downsample_padding=0,
    )
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in unet.parameters())

    def copy(target: nn.Module, source: nn.Module) -> None:
        target.load_state_dict({k: v.view_as(target.state_dict()[k]) for k, v in source.state_dict().items()})

    def copy_block(resnet, attentions: list, block: Block) -> None:
        copy(resnet.norm1, block.norm1)
        copy(resnet.conv1, block.conv1)
        copy(resnet.time_emb_proj, block.time)
        copy(resnet.norm2, block.norm2)
        copy(resnet.conv2, block.conv2)
        if resnet.conv_shortcut is not None:
            copy(resnet.conv_shortcut, block.skip)
        for attn in attentions:
            ours = block.attention
            copy(attn.group_norm, ours.norm)
            copy(attn.to_out[0], ours.out)
            weights, biases = ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3)
            for linear, weight, bias in zip((attn.to_q, attn.to_k, attn.to_v), weights, biases, strict=True):
                linear.load_state_dict({"weight": weight.flatten(1), "bias": bias})

    copy(twin.conv_in, unet.conv_in)
    copy(twin.time_embedding.linear_1, unet.time_mlp[0])
    copy(twin.time_embedding.linear_2, unet.time_mlp[2])
    for ours, theirs in ((unet.down, twin.down_blocks), (unet.up, twin.up_blocks)):
        layers = iter(ours)
        for level in theirs:
            attentions = getattr(level, "attentions", [None] * len(level.resnets))
            for resnet, attention in zip(level.resnets, attentions, strict=True):
                copy_block(resnet, [] if attention is None else [attention], next(layers))
            for resamplers in (getattr(level, "downsamplers", None), getattr(level, "upsamplers", None)):
                for resampler in resamplers or []:
                    copy(resampler.conv, next(layers).conv)
        assert next(layers, None) is None
    copy_block(twin.mid_block.resnets[0], [twin.mid_block.attentions[0]], unet.middle[0])
    copy_block(twin.mid_block.resnets[1], [], unet.middle[1])
    copy(twin.conv_norm_out, unet.norm_out)
    copy(twin.conv_out, unet.conv_out)
    return twin.eval()


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            {"image_size": 32, "channels": 3, "mults": (1, 2, 2, 2), "blocks": 2, "attention": (16,)},
            marks=pytest.mark.slow,
        ),
        {"image_size": 16, "channels": 1, "mults": (1, 2, 2), "blocks": 1, "attention": (8, 4)},
    ],
    ids=["cifar10", "small"],
)
def test_forward_is_diffusers_forward(shape: dict):
    torch.manual_seed(0)
    width, groups = (128, 32) if shape["image_size"] == 32 else (32, 8)
    unet = UNet(
        shape["image_size"], shape["channels"], width, shape["mults"], shape["blocks"], shape["attention"], 0.1,
        norm_groups=groups,
    ).eval()  # fmt: skip
    for parameter in unet.parameters():  # a fresh network is the zero function, which would prove nothing
        nn.init.normal_(parameter, std=0.05)
    x, t = torch.randn(2, shape["channels"], shape["image_size"], shape["image_size"]), torch.tensor([3, 977])
    with torch.no_grad():
        found, expected = unet(x, t), diffusers_twin(unet, **shape)(x, t).sample
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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
