"""The options of a training run, and everything that is built of them before it begins.

Heavy modules are imported inside the functions: a mistyped key is answered without torch.
"""

import copy
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from ddpm_cli.config import ConfigError, build, build_ddpm, naming

if TYPE_CHECKING:
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.devices import Compute
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.ranks import Ranks
    from ddpm_cli.training.settings import Settings
    from ddpm_cli.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Options:
    """The top-level keys of configs/train.yaml; the groups are nodes as `ddpm_cli.config` describes them."""

    name: str | None
    seed: int
    output_dir: str
    resume: str | None
    trust: list[str]
    schedule: dict
    model: dict
    prediction: dict
    variance: dict
    weighting: dict
    loss: dict
    timesteps: dict
    sampler: dict
    optimizer: dict
    ema: dict
    trainer: dict
    data: dict


OPTIONS = "ddpm_cli.prepare.Options"


def prepare(options: Options, ranks: "Ranks") -> "tuple[Trainer, Sampler]":
    """A trainer at step 0, and the sampler of its previews.

    Raises:
        ConfigError: if the configuration cannot be run here; names the key.
    """
    import numpy as np
    import torch

    from ddpm_cli.data.batches import Batches
    from ddpm_cli.devices import choose_compute
    from ddpm_cli.diffusion import samplers
    from ddpm_cli.seeds import derive_seed
    from ddpm_cli.sharding import shard
    from ddpm_cli.training.trainer import Trainer

    settings = build(options.trainer, "trainer")
    with naming("trainer"):
        compute = choose_compute(settings.device, settings.precision, local_rank=ranks.local_rank)
        _check_loop(settings, compute, ranks)
    torch.manual_seed(derive_seed(options.seed, "weights"))
    ddpm = build_ddpm(asdict(options))
    if settings.checkpoint_activations:
        _checkpoint_activations(ddpm)
    sampler = build(options.sampler, "sampler")
    with naming("sampler"):
        samplers.check_options(sampler, ddpm.schedule)
    with naming("data"):
        # Rank 0 first: the others find what it has decoded or fetched.
        images = ranks.main_first(lambda: build(options.data, "data"))
    with naming("model"):
        _check_images(ddpm, options.model.get("image_size"), images.shape)
    _check_labels(ddpm, images, settings)
    with naming("weighting"):
        ddpm.check_weighting()
    with naming("timesteps"):
        timesteps = build(options.timesteps, "timesteps")(ddpm.schedule.timesteps)
    replica = copy.deepcopy(ddpm.model)  # what the EMA begins with
    if settings.shard:
        for model in (ddpm.model, replica):
            shard(model, compute.device, ranks.size)
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
        settings = _with_accumulate(settings, ddpm, compute, images.shape, ranks)
        options.trainer["accumulate"] = settings.accumulate  # so that the run goes on as it began
    if settings.compiles(compute.device.type):
        compute.compile(ddpm.model, graphs=settings.compile == "graphs")
    with naming("optimizer"):
        optimizer = build(options.optimizer, "optimizer")(ddpm.model.parameters())
    with naming("ema"):
        ema = build(options.ema, "ema")(ddpm.model, replica)
    batches = Batches(images, settings.batch_size, seed=options.seed, rank=ranks.rank, ranks=ranks.size)
    resident = None
    if isinstance(images.pixels, np.ndarray) and compute.has_room_for(images.pixels.nbytes):
        resident = torch.from_numpy(images.pixels).to(compute.device)
    trainer = Trainer(
        ddpm,
        batches,
        optimizer=optimizer,
        ema=ema,
        settings=settings,
        compute=compute,
        seed=options.seed,
        timesteps=timesteps,
        ranks=ranks,
        resident=resident,
    )
    return trainer, sampler


def _check_loop(settings: "Settings", compute: "Compute", ranks: "Ranks") -> None:
    """Raise ValueError unless every process gets as many images, and every option has an effect here."""
    parts = 1 if settings.accumulate == "auto" else settings.accumulate
    if settings.batch_size % (ranks.size * parts) != 0:
        raise ValueError(
            f"batch_size {settings.batch_size} cannot be divided among {ranks.size} processes with accumulate {parts}"
        )
    if settings.shard and ranks.size == 1:
        raise ValueError("shard=true has an effect only with several processes, as torchrun starts them")
    if settings.compile == "graphs" and compute.device.type != "cuda":
        raise ValueError(f"compile=graphs has an effect only on CUDA, not on {compute}")


def _with_accumulate(
    settings: "Settings", ddpm: "DDPM", compute: "Compute", image_shape: tuple[int, int, int], ranks: "Ranks"
) -> "Settings":
    """`accumulate` as small as every rank's memory allows."""
    from ddpm_cli.training.fitting import smallest_accumulate

    share = settings.batch_size // ranks.size
    with naming("trainer"):
        # What fits on the smallest GPU is what all do.
        found = ranks.most(smallest_accumulate(ddpm, compute, image_shape, share))
    return replace(settings, accumulate=found)


def pixels(shape: tuple[int, int, int]) -> str:
    """Height x width x channels, as people write it."""
    channels, height, width = shape
    return f"{height} x {width} x {channels}"


@runtime_checkable
class _CanCheckpoint(Protocol):
    checkpoint_activations: bool  # to be set: the network then keeps fewer activations for its backward pass


def _checkpoint_activations(ddpm: "DDPM") -> None:
    model: object = ddpm.model
    if not isinstance(model, _CanCheckpoint):
        name = type(model).__name__
        raise ConfigError(f"trainer.checkpoint_activations: {name} has no attribute of that name to switch on")
    model.checkpoint_activations = True


def _check_labels(ddpm: "DDPM", images: "ImageSet", settings: "Settings") -> None:
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
