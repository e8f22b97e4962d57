"""The options of a training run, and everything that is built of them before it begins.

Heavy modules are imported inside the functions: a mistyped key is answered without torch.
"""

import copy
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ddpm_cli.config.build_ddpm import build_ddpm
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.train_options import TrainOptions

if TYPE_CHECKING:
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.runtime.device import Compute
    from ddpm_cli.training.trainer import Trainer
    from ddpm_cli.training.trainer_config import TrainerConfig


def prepare(options: TrainOptions, world: "World") -> "tuple[Trainer, Sampler]":
    """A trainer at step 0, and the sampler of its previews.

    Raises:
        ConfigError: if the configuration cannot be run here; names the key.
    """
    import numpy as np
    import torch

    from ddpm_cli.data.loader import BatchLoader
    from ddpm_cli.diffusion import samplers
    from ddpm_cli.distributed.fsdp import shard
    from ddpm_cli.runtime.device import choose_compute
    from ddpm_cli.runtime.seeds import derive_seed
    from ddpm_cli.training.trainer import Trainer

    settings = instantiate(options.trainer, "trainer")
    with naming("trainer"):
        compute = choose_compute(settings.device, settings.precision, local_rank=world.local_rank)
        _check_loop(settings, compute, world)
    torch.manual_seed(derive_seed(options.seed, "weights"))
    ddpm = build_ddpm(asdict(options))
    if settings.activation_checkpointing:
        _activation_checkpointing(ddpm)
    sampler = instantiate(options.sampler, "sampler")
    with naming("sampler"):
        samplers.check_options(sampler, ddpm.schedule)
    with naming("data"):
        # Rank 0 first: the others find what it has decoded or fetched.
        images = world.main_first(lambda: instantiate(options.data, "data"))
    with naming("model"):
        _check_images(ddpm, options.model.get("image_size"), images.shape)
    _check_labels(ddpm, images, settings)
    with naming("weighting"):
        ddpm.check_weighting()
    with naming("timestep_sampler"):
        timesteps = instantiate(options.timestep_sampler, "timestep_sampler")(ddpm.schedule.timesteps)
    replica = copy.deepcopy(ddpm.model)  # what the EMA begins with
    if settings.fsdp:
        for model in (ddpm.model, replica):
            shard(model, compute.device, world.size)
        ddpm.schedule.to(compute.device)
    else:
        compute.place(ddpm)
        compute.place(replica)
    if settings.deterministic:
        compute.make_deterministic()
    else:
        # Shapes stay the same: which of cuDNN's algorithms is the fastest is worth finding. It is found by timing, and
        # another may round another way, so ddpm-sample, of which all runs are to agree, does not ask for it.
        torch.backends.cudnn.benchmark = True
    if settings.accumulate == "auto":
        settings = _with_accumulate(settings, ddpm, compute, images.shape, world)
        options.trainer["accumulate"] = settings.accumulate  # so that the run goes on as it began
    if settings.compiles(compute.device.type):
        compute.compile(ddpm.model, graphs=settings.compile == "graphs")
    with naming("optimizer"):
        optimizer = instantiate(options.optimizer, "optimizer")(ddpm.model.parameters())
    with naming("ema"):
        ema = instantiate(options.ema, "ema")(ddpm.model, replica)
    batches = BatchLoader(images, settings.batch_size, seed=options.seed, rank=world.rank, world_size=world.size)
    pixels_on_device = None
    if isinstance(images.pixels, np.ndarray) and compute.has_room_for(images.pixels.nbytes):
        pixels_on_device = torch.from_numpy(images.pixels).to(compute.device)
    trainer = Trainer(
        ddpm,
        batches,
        optimizer=optimizer,
        ema=ema,
        settings=settings,
        compute=compute,
        seed=options.seed,
        timesteps=timesteps,
        world=world,
        pixels_on_device=pixels_on_device,
    )
    return trainer, sampler


def _check_loop(settings: "TrainerConfig", compute: "Compute", world: "World") -> None:
    """Raise ValueError unless every process gets as many images, and every option has an effect here."""
    parts = 1 if settings.accumulate == "auto" else settings.accumulate
    if settings.batch_size % (world.size * parts) != 0:
        raise ValueError(
            f"batch_size {settings.batch_size} cannot be divided among {world.size} processes with accumulate {parts}"
        )
    if settings.fsdp and world.size == 1:
        raise ValueError("fsdp=true has an effect only with several processes, as torchrun starts them")
    if settings.compile == "graphs" and compute.device.type != "cuda":
        raise ValueError(f"compile=graphs has an effect only on CUDA, not on {compute}")


def _with_accumulate(
    settings: "TrainerConfig", ddpm: "DDPM", compute: "Compute", image_shape: tuple[int, int, int], world: "World"
) -> "TrainerConfig":
    """`accumulate` as small as every rank's memory allows."""
    from ddpm_cli.training.batch_size_finder import smallest_accumulate

    share = settings.batch_size // world.size
    with naming("trainer"):
        # What fits on the smallest GPU is what all do.
        found = world.most(smallest_accumulate(ddpm, compute, image_shape, share))
    return replace(settings, accumulate=found)


def pixels(shape: tuple[int, int, int]) -> str:
    """Height x width x channels, as people write it."""
    channels, height, width = shape
    return f"{height} x {width} x {channels}"


@runtime_checkable
class _CanCheckpoint(Protocol):
    activation_checkpointing: bool  # to be set: the network then keeps fewer activations for its backward pass


def _activation_checkpointing(ddpm: "DDPM") -> None:
    model: object = ddpm.model
    if not isinstance(model, _CanCheckpoint):
        name = type(model).__name__
        raise ConfigError(f"trainer.activation_checkpointing: {name} has no attribute of that name to switch on")
    model.activation_checkpointing = True


def _check_labels(ddpm: "DDPM", images: "ImageSet", settings: "TrainerConfig") -> None:
    given = 0 if images.labels is None else len(images.class_names)
    taken = ddpm.num_classes or 0
    if given != taken:
        raise ConfigError(
            f"model.num_classes: the network takes {taken} classes, the data has labels of {given}; "
            "data.num_classes says how many for both"
        )
    if settings.label_dropout is not None and given == 0:
        raise ConfigError("trainer.label_dropout: has no effect without labels; data.num_classes=N brings them")


def _check_images(ddpm: "DDPM", image_size: object, shape: tuple[int, int, int]) -> None:
    """Find now, not after the run has begun, that the network and the data do not fit."""
    sides = [image_size, image_size] if isinstance(image_size, int) else image_size
    if sides is not None and sides != list(shape[1:]):
        raise ValueError(f"image_size is {image_size}, but the data's images are {pixels(shape)}")
    ddpm.check_images(shape)
    if getattr(ddpm.model, "learn_variance", False) and not ddpm.learns_variance:
        raise ValueError("learn_variance has no effect with a fixed variance; variance=learned_range sets it")
