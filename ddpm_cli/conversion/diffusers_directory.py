"""A model of ours as a directory of diffusers: a pipeline of a network and a scheduler, and a model card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm_cli.checkpoint.pretrained import Pretrained, Selection
from ddpm_cli.checkpoint.write import SPARE, as_safetensors
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.export_options import ExportOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.schema import NODE_KEYS
from ddpm_cli.config.shipped import options_by_target
from ddpm_cli.conversion.card_code import Drawing
from ddpm_cli.conversion.diffusers_unet import CLASS, CONFIG_FILE, from_options, to_diffusers
from ddpm_cli.conversion.layers import UNET, default_options
from ddpm_cli.conversion.model_card import CARD_FILE, Model, model_card
from ddpm_cli.conversion.origin import origin_of
from ddpm_cli.conversion.scheduler_config import SCHEDULER, scheduler_config
from ddpm_cli.diffusion.variance import Variance
from ddpm_cli.io import durable

INDEX_FILE = "model_index.json"
UNET_FOLDER, SCHEDULER_FOLDER = "unet", "scheduler"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
SCHEDULER_FILE = "scheduler_config.json"
PIPELINE = "DDPMPipeline"
VERSION = "0.35.0"  # of diffusers, in whose form this is written


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Everything that is written.

    Args:
        unet, scheduler: their configurations.
        tensors: of the network, under the names that diffusers gives them.
        card: the model card.
        described: lines on what it is.
    """

    unet: dict[str, Any]
    scheduler: dict[str, Any]
    tensors: dict[str, Tensor]
    card: str
    described: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """An upper bound of the size on the disk."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values()) + SPARE

    def write(self, directory: Path) -> None:
        """Write all of it to an existing directory, durably."""
        durable.check_space(directory, self.bytes)
        index = {"unet": ["diffusers", CLASS], "scheduler": ["diffusers", SCHEDULER]}
        _write_json(directory / INDEX_FILE, PIPELINE, index)
        _write_text(directory / CARD_FILE, self.card)
        network, scheduler = directory / UNET_FOLDER, directory / SCHEDULER_FOLDER
        durable.make_directory(network)
        durable.make_directory(scheduler)
        _write_json(network / CONFIG_FILE, CLASS, self.unet)
        durable.write_new(network / WEIGHTS_FILE, as_safetensors(self.tensors, {}))
        _write_json(scheduler / SCHEDULER_FILE, SCHEDULER, self.scheduler)
        durable.sync(network)
        durable.sync(scheduler)


def exported(selection: Selection, pretrained: Pretrained, options: ExportOptions) -> Exported:
    """The parts of a model that are written.

    Raises:
        ConfigError: if diffusers has no such model, or an option has no effect on it or cannot be; names the key.
    """
    config, ddpm = pretrained.config, pretrained.ddpm
    variance = _variance(pretrained, options)
    threshold = instantiate(options.threshold, "threshold")
    _check_labels(pretrained, options)
    with naming("ckpt"):
        network, tensors = _network(pretrained, labels=options.labels == "keep", learns_variance=variance.learned)
        unet, theirs = from_options(network), to_diffusers(tensors, network)
    scheduler = scheduler_config(ddpm, config["schedule"], variance=variance, threshold=threshold)
    parameters = sum(tensor.numel() for tensor in theirs.values())
    drawing = _drawing(pretrained, network, scheduler=scheduler)
    (schedule, *_) = options_by_target("schedule").get(config["schedule"]["_target_"], ["none of ours"])
    model = Model(Path(options.out).absolute().name, unet, scheduler, schedule, parameters, drawing)
    origin = origin_of(selection, options)
    return Exported(
        unet=unet,
        scheduler=scheduler,
        tensors=theirs,
        card=model_card(model, origin),
        described=(
            f"model    {options.ckpt}: step {pretrained.step:,}, {origin.weights}",
            f"network  {CLASS}, {parameters:,} parameters",
            f"noise    {SCHEDULER}, {scheduler['prediction_type']}, {scheduler['variance_type']}",
        ),
    )


def _variance(pretrained: Pretrained, options: ExportOptions) -> Variance:
    """The variance that is written: the model's own unless another was chosen."""
    own = pretrained.ddpm.variance
    if options.variance is None:
        return own
    chosen = instantiate(options.variance, "variance")
    if chosen.learned and not own.learned:
        raise ConfigError("variance: the network does not predict a variance; choose fixed_small or fixed_large")
    return chosen


def _check_labels(pretrained: Pretrained, options: ExportOptions) -> None:
    """Raise ConfigError if the network cannot be written without labels, or with them."""
    ddpm, dropout = pretrained.ddpm, pretrained.label_dropout
    if options.labels == "none":
        if ddpm.num_classes is None:
            raise ConfigError("labels=none: has no effect, the network was trained without labels")
        if ddpm.needs_labels:
            raise ConfigError("labels=none: the network was trained with every label (model.null_label=false)")
        if dropout == 0:
            raise ConfigError("labels=none: the network was trained with every label (label_dropout=0)")
    elif ddpm.num_classes is not None and dropout == 1:
        raise ConfigError(
            "labels=keep: the network was trained with every label left out (label_dropout=1); choose labels=none"
        )


def _network(
    pretrained: Pretrained, *, labels: bool, learns_variance: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All options and tensors of the network that is written, in our terms."""
    node, tensors = pretrained.config["model"], dict(pretrained.ddpm.model.state_dict())
    if node["_target_"] != UNET:
        raise ValueError(f"its network is {node['_target_']}; only our UNet has an equivalent in diffusers")
    options = default_options() | {key: value for key, value in node.items() if key not in NODE_KEYS}
    if not labels:
        options |= {"num_classes": None}
        del tensors["label_embedding.weight"]
    if options["learn_variance"] and not learns_variance:
        options |= {"learn_variance": False}
        tensors |= {name: tensors[name][: options["in_channels"]] for name in ("conv_out.weight", "conv_out.bias")}
    return options, tensors


def _drawing(pretrained: Pretrained, network: dict[str, Any], *, scheduler: dict[str, Any]) -> Drawing:
    """What the model card's code needs to know of the network and the scheduler."""
    channels, height, width = pretrained.image_shape
    schedule, labels, without = pretrained.ddpm.schedule, network["num_classes"], network["null_label"]
    return Drawing(
        channels=channels,
        height=height,
        width=width,
        timesteps=schedule.timesteps,
        ends_in_noise=schedule.ends_in_noise,
        labels=labels,
        no_label=labels if without else None,
        guided=without and pretrained.label_dropout != 0,
        learns_variance=network["learn_variance"],
        clips=scheduler["clip_sample"],
        rescales=scheduler["thresholding"],
    )


def _write_json(file: Path, written_for: str, content: dict[str, Any]) -> None:
    whole = {"_class_name": written_for, "_diffusers_version": VERSION} | content
    _write_text(file, f"{json.dumps(whole, indent=2)}\n")


def _write_text(file: Path, text: str) -> None:
    durable.write_new(file, [text.encode()])
