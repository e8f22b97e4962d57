"""Builds the trainer from the options of a run: make the parts, check that they fit, move them to the device.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.common_options import without_common
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.figures import check_figures
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sampler_spacing import check_not_optimized
from ddpm_cli.config.schema import targets_in
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io.text import size_text
from ddpm_cli.runtime.logs import hold, say_held

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.data.loader import BatchLoader
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.ema.ema import EMA
    from ddpm_cli.loggers.logger import Logger
    from ddpm_cli.runtime.device import Compute
    from ddpm_cli.training.timestep_samplers import Uniform
    from ddpm_cli.training.trainer import Trainer
    from ddpm_cli.training.trainer_config import TrainerConfig


class Parts(NamedTuple):
    """The parts that a configuration describes, except its images; each on the CPU."""

    config: "TrainerConfig"
    ddpm: "DDPM"
    sampler: "Sampler"  # of the previews
    timestep_sampler: "Uniform"
    optimizer: "Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]"
    ema: "Callable[[nn.Module, nn.Module], EMA]"  # of a network and the copy that will hold its average
    loggers: "dict[str, Logger]"  # by name; not started


class Training(NamedTuple):
    """The objects that make a run."""

    trainer: "Trainer"  # at step 0
    sampler: "Sampler"  # of the previews
    options: TrainOptions  # with numbers in place of `auto`
    held_out: "ImageSet | None" = None  # None: nothing is held out
    loggers: "Mapping[str, Logger]" = MappingProxyType({})


def build_training(
    options: TrainOptions,
    world: "World",
    *,
    classes: tuple[str, ...] = (),
    begin_with: Callable[[Parts], None] = lambda parts: None,
) -> Training:
    """Build the run that the options describe in four steps: parts, checks, devices, trainer.

    Args:
        classes: the names of the labels that the weights know, from 0 up; the data's labels are numbered in this order.
        begin_with: sets the network's initial weights.

    Raises:
        ConfigError: if the configuration cannot be run here; names the key.
    """
    from ddpm_cli.data.holdout import selected
    from ddpm_cli.runtime.device import choose_compute
    from ddpm_cli.training.recipe import doubts
    from ddpm_cli.training.trainer import Trainer

    check_not_optimized(options.sampler)
    parts = instantiate_parts(options)
    check_figures(asdict(options))
    with naming("trainer"):
        compute = choose_compute(parts.config.device, parts.config.precision, local_rank=world.local_rank)
    check_compatible(parts, compute, world)
    if world.main:
        decays, parameters = options.ema.get("decays", ()), sum(p.numel() for p in parts.ddpm.parameters())
        hold(doubts(parts.config, decays=decays, parameters=parameters, device=compute.device.type))
    begin_with(parts)
    images, held_out = _images(parts, options, world, classes)
    say_held()

    replica = place(parts, compute, world)
    config = parts.config
    if config.accumulate == "auto":
        config = replace(config, accumulate=_find_accumulate(parts, compute, world, images.shape))
        options = replace(options, trainer=options.trainer | {"accumulate": config.accumulate})
    if config.compiles(compute.device.type):
        compute.compile(parts.ddpm.model, graphs=config.compile == "graphs")
    with naming("optimizer"):
        optimizer = parts.optimizer(parts.ddpm.model.parameters())
    with naming("ema"):
        ema = parts.ema(parts.ddpm.model, replica)
    trainer = Trainer(
        parts.ddpm,
        _batches(images, held_out, config, options.seed, world),
        optimizer=optimizer,
        ema=ema,
        config=config,
        compute=compute,
        seed=options.seed,
        timestep_sampler=parts.timestep_sampler,
        world=world,
        pixels_on_device=_pixels_on_device(images, compute),
    )
    kept_from_it = selected(images, held_out) if len(held_out) > 0 else None
    return Training(trainer, parts.sampler, options, kept_from_it, parts.loggers)


def _images(
    parts: Parts, options: TrainOptions, world: "World", classes: tuple[str, ...]
) -> "tuple[ImageSet, np.ndarray]":
    """The whole set, checked against the network, and the indices of its held-out images, int64 `[n]`."""
    from ddpm_cli.data.holdout import hold_out

    with naming("data"):
        data, common = without_common(options.data)
        # Rank 0 first: the others use what it has decoded or downloaded. After all other checks: this may take hours.
        images = world.main_first(lambda: instantiate(data, "data")).numbered_as(classes)
    check_images(parts, images, options.model.get("image_size"))
    with naming("data.holdout"):
        held_out = hold_out(images, common.holdout, options.seed)
        if len(held_out) > 0 and len(images) - len(held_out) < parts.config.batch_size:
            left = f"{len(images) - len(held_out)} of {len(images)} images"
            raise ValueError(f"leaves {left}, fewer than a batch (trainer.batch_size={parts.config.batch_size})")
    return images, held_out


def _batches(
    images: "ImageSet", held_out: "np.ndarray", config: "TrainerConfig", seed: int, world: "World"
) -> "BatchLoader":
    from ddpm_cli.data.loader import BatchLoader

    return BatchLoader(
        images,
        config.batch_size,
        seed=seed,
        rank=world.rank,
        world_size=world.size,
        held_out=held_out,
        repeat=config.overfit_batches,
    )


def instantiate_parts(options: TrainOptions) -> Parts:
    """Build every node but `data`. The network's random numbers depend only on the seed, not on earlier draws.

    Raises:
        ConfigError: if a node refuses a value, a number is beyond what a checkpoint may hold, or the network and its
            diffusion cannot work together.
    """
    import torch

    from ddpm_cli.checkpoint.validate import check_config
    from ddpm_cli.runtime.seeds import derive_seed

    nodes = {group: node for group, node in asdict(options).items() if group != "data"}
    check_config(nodes, trust=frozenset(targets_in(nodes)))
    config = instantiate(options.trainer, "trainer")
    torch.manual_seed(derive_seed(options.seed, "weights"))
    ddpm = build_ddpm(asdict(options))
    with naming("timestep_sampler"):
        timestep_sampler = instantiate(options.timestep_sampler, "timestep_sampler")(ddpm.schedule)
    return Parts(
        config=config,
        ddpm=ddpm,
        sampler=instantiate(options.sampler, "sampler"),
        timestep_sampler=timestep_sampler,
        optimizer=instantiate(options.optimizer, "optimizer"),
        ema=instantiate(options.ema, "ema"),
        loggers={name: instantiate(node, f"logger.{name}") for name, node in options.logger.items()},
    )


# What fits ------------------------------------------------------------------------------------------------------------


@runtime_checkable
class _CanCheckpoint(Protocol):
    activation_checkpointing: bool  # true: keep fewer activations for the backward pass


def check_compatible(parts: Parts, compute: "Compute", world: "World") -> None:
    """Check that the parts, except the images, fit each other and this machine.

    Raises:
        ConfigError: naming the first key that does not fit, or has no effect here.
    """
    ddpm, config = parts.ddpm, parts.config
    with naming("trainer"):
        _check_loop(config, compute, world)
    _check_what_follows_the_network(parts)
    if config.activation_checkpointing and not isinstance(ddpm.model, _CanCheckpoint):
        name = type(ddpm.model).__name__
        raise ConfigError(f"trainer.activation_checkpointing: {name} does not support it (it has no such attribute)")
    if config.preview_every > 0 or (config.eval_every > 0 and config.eval_images > 0):
        with naming("sampler"):
            parts.sampler.times(ddpm.schedule)
    with naming("weighting"):
        ddpm.check_weighting()
    if getattr(ddpm.model, "learn_variance", False) and not ddpm.learns_variance:
        raise ConfigError("model: learn_variance has no effect with a fixed variance; variance=learned_range sets it")


def _check_what_follows_the_network(parts: Parts) -> None:
    """Make of one weight what is made of the network itself only when the images have been read."""
    from torch import nn

    with naming("optimizer"):
        parts.optimizer(nn.Linear(1, 1).parameters())
    with naming("ema"):
        parts.ema(nn.Linear(1, 1), nn.Linear(1, 1))


def check_images(parts: Parts, images: "ImageSet", image_size: object) -> None:
    """Check that the network takes the images and their labels, before the run starts.

    Args:
        image_size: of `model`.

    Raises:
        ConfigError: naming the key that does not fit.
    """
    with naming("model"):
        sides = [image_size, image_size] if isinstance(image_size, int) else image_size
        if sides is not None and sides != list(images.shape[1:]):
            raise ValueError(f"image_size is {image_size}, but the data's images are {size_text(images.shape)}")
        parts.ddpm.check_images(images.shape)
    given = 0 if images.labels is None else len(images.class_names)
    taken = parts.ddpm.num_classes or 0
    if given != taken:
        raise ConfigError(
            f"model.num_classes: the network takes {taken} classes, the data has {given}; data.num_classes sets both"
        )
    if parts.config.label_dropout is not None and given == 0:
        raise ConfigError("trainer.label_dropout: has no effect without labels; add data.num_classes=N")
    if parts.config.label_dropout not in (None, 0) and parts.ddpm.needs_labels:
        raise ConfigError(
            "trainer.label_dropout: model.null_label=false is for a network that is trained with every label; "
            "leave label_dropout out, or choose null_label=true"
        )


def _check_loop(config: "TrainerConfig", compute: "Compute", world: "World") -> None:
    """Raise ValueError unless every process gets the same number of images and every option has an effect here."""
    micro_batches = 1 if config.accumulate == "auto" else config.accumulate
    if config.batch_size % (world.size * micro_batches) != 0:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be divided among {world.size} processes "
            f"with accumulate {micro_batches}"
        )
    if config.fsdp and world.size == 1:
        raise ValueError("fsdp=true has an effect only with several processes, started by torchrun")
    if config.compile == "graphs" and compute.device.type != "cuda":
        raise ValueError(f"compile=graphs has an effect only on CUDA, not on {compute}")


# Where it is ----------------------------------------------------------------------------------------------------------


def place(parts: Parts, compute: "Compute", world: "World") -> "nn.Module":
    """Move network and diffusion to the device, and set torch's switches for training.

    Returns:
        A copy of the network as it is now, on the same device, from which its average starts.
    """
    import torch

    from ddpm_cli.distributed.fsdp import shard

    ddpm, model = parts.ddpm, parts.ddpm.model
    if parts.config.activation_checkpointing:
        assert isinstance(model, _CanCheckpoint)
        model.activation_checkpointing = True
    replica = copy.deepcopy(ddpm.model)
    if parts.config.fsdp:
        for network in (ddpm.model, replica):
            shard(network, compute.device, world.size)
        ddpm.schedule.to(compute.device)
    else:
        compute.place(ddpm)
        compute.place(replica)
    if parts.config.deterministic:
        compute.make_deterministic()
    else:
        # Shapes stay the same, so it pays to find cuDNN's fastest algorithm. It is found by timing, and algorithms may
        # round differently, so ddpm-sample, whose runs must all agree, does not do this.
        torch.backends.cudnn.benchmark = True
    return replica


def _find_accumulate(parts: Parts, compute: "Compute", world: "World", image_shape: tuple[int, int, int]) -> int:
    """The smallest `accumulate` that fits into every rank's memory."""
    from ddpm_cli.training.batch_size_finder import smallest_accumulate

    share = parts.config.batch_size // world.size
    with naming("trainer"):
        # All ranks use what fits on the smallest GPU.
        return world.max(smallest_accumulate(parts.ddpm, compute, image_shape, share))


def _pixels_on_device(images: "ImageSet", compute: "Compute") -> "Tensor | None":
    """All pixels of a set that is in memory or in the cache, on the GPU if it has room for them."""
    import numpy as np
    import torch

    from ddpm_cli.data.stored_pixels import StoredPixels

    pixels = images.pixels
    if not (isinstance(pixels, np.ndarray | StoredPixels) and compute.has_room_for(pixels.nbytes)):
        return None
    if isinstance(pixels, np.ndarray):
        return torch.from_numpy(pixels).to(compute.device)
    on_device = torch.empty(pixels.shape, dtype=torch.uint8, device=compute.device)
    with naming("data"):
        for first, part in pixels.parts():
            on_device[first : first + len(part)] = torch.from_numpy(part)
    return on_device
