"""The levels of a U-Net at another image size than its YAML file's: the rule, and that such networks are built."""

import json
import re

import numpy as np
import pytest
import torch
from commands import assert_one_message, train
from omegaconf import OmegaConf

from ddpm_cli import UNet
from ddpm_cli.cli.resolvers import register_resolvers
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.shipped import configs_directory
from ddpm_cli.config.unet_levels import attention_resolutions, channel_mults, levels_text

SIZES = {
    ("unet_64", 64): ([1, 2, 2, 4], [16, 8]),
    ("unet_64", 48): ([1, 2, 4], [24, 12]),
    ("unet_64", 96): ([1, 2, 2, 4], [24, 12]),
    ("unet_64", 128): ([1, 1, 2, 2, 4], [16, 8]),
    ("unet_64", 256): ([1, 1, 1, 2, 2, 4], [16, 8]),
    ("unet_64", (720, 1280)): ([1, 1, 2, 2, 4], [45]),
    ("unet_64", (64, 100)): ([1, 2, 4], [32, 16]),
    ("unet_64", 100): ([1, 2, 4], [50, 25]),
    ("adm_64", 64): ([1, 2, 3, 4], [32, 16, 8]),
    ("adm_64", 128): ([1, 1, 2, 3, 4], [32, 16, 8]),
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


@pytest.mark.parametrize("image_size", ["x", None, 0, -64, [64], [64, "x"], [64, 64, 3]])
def test_where_there_is_no_size_the_files_own_values_stand(image_size: object):
    found = options("unet_64", image_size)
    assert (found["channel_mults"], found["attention_resolutions"]) == ([1, 2, 2, 4], [16, 8])


REFUSED = {
    99: "can be halved only 0 times, to 99 x 99 pixels: too few levels; use 96 or 100, or set",
    130: "can be halved only 1 times, to 65 x 65 pixels: too few levels; use 128 or 132, or set",
    101: "use 100 or 104, or set",
    198: "use 196 or 200, or set",
    1000: "use 992 or 1008, or set",
    5000: "use 4992 or 5120, or set",
    (63, 65): r"use \[62,64\] or \[64,68\], or set",
    (64, 99): r"use \[64,96\] or \[64,100\], or set",
    (480, 854): r"use \[480,848\] or \[480,856\], or set",
    (1080, 1920): r"to 135 x 240 pixels: too few levels; use \[1056,1920\] or \[1088,1920\], or set",
}


@pytest.mark.parametrize("image_size", REFUSED, ids=str)
def test_a_size_that_nothing_follows_for_is_refused_with_the_next_ones(image_size: int | tuple[int, int]):
    with pytest.raises(ConfigError, match=REFUSED[image_size]):
        channel_mults(image_size, 8, [1, 2, 2, 4])


@pytest.mark.parametrize(("coarsest", "mults", "attended"), [(8, [1, 2, 2, 4], [16, 8]), (7, [1, 2, 2], [14])])
def test_every_size_has_levels_or_names_two_that_have(coarsest: int, mults: list[int], attended: list[int]):
    for image_size in [*range(1, 300), (1080, 1920), (2160, 3840), (97, 1024), 719, 4099]:
        try:
            sizes = [(image_size, channel_mults(image_size, coarsest, mults))]
        except ConfigError as error:
            (found,) = re.findall(r"use (\[?[\d,]+\]?) or (\[?[\d,]+\]?), or set", str(error))
            below, above = map(json.loads, found)
            assert min(np.ravel(image_size) - np.ravel(below)) >= 0 <= min(np.ravel(above) - np.ravel(image_size))
            sizes = [(size, channel_mults(size, coarsest, mults)) for size in (below, above)]
        for size, found in sizes:
            assert not (np.ravel(size) % 2 ** (len(found) - 1)).any()
            levels = {min(np.ravel(size)) >> level for level in range(len(found))}
            assert set(attention_resolutions(size, coarsest, attended)) <= levels
            assert min(levels) < 64


def test_the_message_names_the_key_and_the_sizes(tmp_path):
    done = train("experiment=folder_64", "data.path=.", "data.image_size=[1080,1920]", cwd=tmp_path)
    says = r"data.image_size: \[1080,1920\] can .*; use \[1056,1920\] or \[1088,1920\], or set "
    assert_one_message(done, "train", says)


def test_the_log_says_which_levels_there_are():
    assert levels_text(options("unet_64", 96)) == "levels of 96, 48, 24, 12 pixels, attention at 24, 12"
    assert levels_text({"image_size": [32, 64], "channel_mults": [1, 2], "attention_resolutions": []}) == (
        "levels of 32, 16 pixels"
    )
    assert levels_text({"width": 3}) == ""
