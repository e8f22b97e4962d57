"""The levels of a U-Net at another image size than its YAML file's: the rule, and that such networks are built."""

import pytest
import torch
from commands import assert_one_message, train
from omegaconf import OmegaConf

from ddpm_cli import UNet
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.config.unet_levels import levels_text

SIZES = {
    ("unet_64", 64): ([1, 2, 2, 4], [16, 8]),
    ("unet_64", 48): ([1, 2, 4], [24, 12]),
    ("unet_64", 96): ([1, 2, 2, 4], [24, 12]),
    ("unet_64", 128): ([1, 1, 2, 2, 4], [16, 8]),
    ("unet_64", 256): ([1, 1, 1, 2, 2, 4], [16, 8]),
    ("unet_64", (720, 1280)): ([1, 1, 2, 2, 4], [45]),
    ("unet_64", (64, 100)): ([1, 2, 4], [32, 16]),
    ("unet_64", 100): ([1, 2, 4], [50, 25]),
    ("unet_32", 32): ([1, 2, 2, 2], [16]),
    ("unet_32", 64): ([1, 1, 2, 2, 2], [16]),
    ("unet_28", 28): ([1, 2, 2], [14]),
    ("unet_28", 32): ([1, 2, 2], [16]),
    ("unet_16", 16): ([1, 2, 2], [8]),
    ("unet_16", 32): ([1, 1, 2, 2], [8]),
    ("unet_16", 8): ([1, 2], [8]),
}


def options(model: str, image_size: object) -> dict:
    """Those of a YAML file where the images are of this size."""
    register_resolvers()
    node = OmegaConf.load(configs_directory() / "model" / f"{model}.yaml")
    image_size = list(image_size) if isinstance(image_size, tuple) else image_size
    own = {"image_size": image_size, "in_channels": 3, "num_classes": None, "learn_variance": False}
    found = OmegaConf.to_container(OmegaConf.merge(node, own), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key != "_target_"}


@pytest.mark.parametrize(("model", "image_size"), SIZES, ids=str)
def test_levels_follow_the_image_size_and_make_a_network(model: str, image_size: object):
    found = options(model, image_size)
    assert (found["channel_mults"], found["attention_resolutions"]) == SIZES[model, image_size]
    with torch.device("meta"):
        UNet(**found)  # which refuses what does not fit


@pytest.mark.parametrize("image_size", [99, 130, 198, "x", None, 0, [64], [64, "x"], (1080, 1920)])
def test_where_nothing_follows_the_files_own_values_stand(image_size: object):
    found = options("unet_64", image_size)
    assert (found["channel_mults"], found["attention_resolutions"]) == ([1, 2, 2, 4], [16, 8])


def test_the_message_says_which_sizes_would_do(tmp_path):
    done = train("experiment=folder_64", "data.path=.", "data.image_size=99", cwd=tmp_path)
    assert_one_message(done, "train", "model: image_size 99 cannot be halved 3 times, .*; 96 or 104 would do")


def test_the_log_says_which_levels_there_are():
    assert levels_text(options("unet_64", 96)) == "levels of 96, 48, 24, 12 pixels, attention at 24, 12"
    assert levels_text({"image_size": [32, 64], "channel_mults": [1, 2], "attention_resolutions": []}) == (
        "levels of 32, 16 pixels"
    )
    assert levels_text({"width": 3}) == ""
