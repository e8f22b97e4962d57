"""`ddpm-train`: from a checked configuration to a trained model.

Heavy modules are imported inside the functions: `--help`, `--cfg job` and a mistyped key are answered without torch.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from ddpm_cli import run_directory
from ddpm_cli.cli import Call, RunFailed, launch
from ddpm_cli.config import ConfigError, build, build_ddpm, check, check_untrusted, is_node, naming
from ddpm_cli.logs import log, logging_to
from ddpm_cli.resume import merge

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.training.trainer import Trainer

NON_FINITE_STATUS = 3


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
    sampler: dict
    optimizer: dict
    ema: dict
    trainer: dict
    data: dict


OPTIONS = "ddpm_cli.train.Options"


def main() -> None:
    launch("ddpm-train", "train", OPTIONS, start)


def start(config: dict, call: Call) -> float:
    """Set up a run, new or resumed, and train it. Returns its final loss.

    Raises:
        ConfigError: before anything has been written, if the configuration cannot be run here.
        RunFailed: if the run had to end early.
    """
    if call.resume is None:
        options = Options(**config)
        if options.name is not None:
            with naming("name"):
                run_directory.check_name(options.name)
        trainer, sampler = _set_up(options)
        with naming("output_dir"):
            _check_space(Path(options.output_dir), trainer)
            directory = call.sweep_directory
            if directory is None:
                default_name = run_directory.plain_name(trainer.batches.images.name)
                name = default_name if options.name is None else options.name
                directory = run_directory.create(options.output_dir, name)
    else:
        directory = Path(call.resume)
        options, trainer, sampler = _resume(directory, call)
        with naming("resume"):
            _check_space(directory, trainer)
    with naming("output_dir"):
        (directory / run_directory.CONFIG_FILE).write_text(_as_yaml(options), encoding="utf-8")
    with logging_to(directory / run_directory.LOG_FILE):
        _announce(trainer, directory)
        return _train(trainer, sampler, options, directory)


def _set_up(options: Options) -> "tuple[Trainer, Sampler]":
    import torch

    from ddpm_cli.data.batches import Batches
    from ddpm_cli.devices import choose_compute
    from ddpm_cli.diffusion import samplers
    from ddpm_cli.seeds import derive_seed
    from ddpm_cli.training.trainer import Trainer

    settings = build(options.trainer, "trainer")
    with naming("trainer"):
        compute = choose_compute(settings.device, settings.precision)
    torch.manual_seed(derive_seed(options.seed, "weights"))
    ddpm = build_ddpm(asdict(options))
    sampler = build(options.sampler, "sampler")
    with naming("sampler"):
        samplers.check_options(sampler, ddpm.schedule)
    with naming("data"):
        images = build(options.data, "data")
    with naming("model"):
        _check_images(ddpm, options.model.get("image_size"), images.shape)
    compute.place(ddpm)
    with naming("optimizer"):
        optimizer = build(options.optimizer, "optimizer")(ddpm.model.parameters())
    with naming("ema"):
        ema = build(options.ema, "ema")(ddpm.model)
    batches = Batches(images, settings.batch_size, seed=options.seed)
    trainer = Trainer(
        ddpm, batches, optimizer=optimizer, ema=ema, settings=settings, compute=compute, seed=options.seed
    )
    return trainer, sampler


def _resume(directory: Path, call: Call) -> "tuple[Options, Trainer, Sampler]":
    from ddpm_cli import checkpoint

    with naming("resume"):
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no run directory {directory}")
        newest = checkpoint.newest(directory)
        ema, _ = checkpoint.load_ema(newest)
        state, description = checkpoint.load_training(newest)
    # Whose classes to trust is said on the command line, never by the checkpoint.
    merged = merge(description.config, {"trust": []} | call.changes)
    for group, node in merged.items():
        if is_node(node):
            check_untrusted(group, node, trust=map(str, merged["trust"]))
    check(merged, OPTIONS)
    options = Options(**merged)
    trainer, sampler = _set_up(options)
    images = len(trainer.batches.images)
    if images != description.images:
        raise ConfigError(f"data: the run was trained on {description.images} images, there are now {images}")
    with naming("resume"):
        trainer.load_state(state, ema)
    if trainer.step >= trainer.settings.steps:
        raise ConfigError(f"resume: {directory} has done its {trainer.step} steps; to go further add trainer.steps=N")
    return options, trainer, sampler


def _check_images(ddpm: "DDPM", image_size: object, shape: tuple[int, int, int]) -> None:
    """Find now, not after the run has begun, that the network and the data do not fit."""
    sides = [image_size, image_size] if isinstance(image_size, int) else image_size
    if sides is not None and sides != list(shape[1:]):
        raise ValueError(f"image_size is {image_size}, but the data's images are {_pixels(shape)}")
    ddpm.check_images(shape)


def _check_space(directory: Path, trainer: "Trainer") -> None:
    """Refuse to begin where the checkpoints that will be kept, and the one being written, have no room."""
    from ddpm_cli import checkpoint

    settings = trainer.settings
    size = checkpoint.size(trainer.ema.model.state_dict(), trainer.state())
    if trainer.step == 0:  # the optimizer will add two moments to every parameter
        size += 2 * sum(p.numel() * p.element_size() for p in trainer.ddpm.parameters())
    saves = settings.steps // settings.checkpoint_every + 1 if settings.checkpoint_every > 0 else 1
    needed = size * min(saves, settings.keep_last + 1)
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(f"{existing} has {free / 1e6:,.0f} MB free, the run's checkpoints take {needed / 1e6:,.0f} MB")


def _announce(trainer: "Trainer", directory: Path) -> None:
    images, settings = trainer.batches.images, trainer.settings
    parameters = sum(p.numel() for p in trainer.ddpm.parameters())
    epochs = settings.steps * settings.batch_size / len(images)
    log.info(f"data     {images.name}: {len(images):,} images, {_pixels(images.shape)}")
    log.info(f"network  {type(trainer.ddpm.model).__name__}, {parameters:,} parameters")
    log.info(f"device   {trainer.compute}")
    log.info(f"steps    {settings.steps:,} of batch {settings.batch_size} ({epochs:,.1f} epochs)")
    log.info(f"run      {directory}")
    if trainer.step > 0:
        log.info(f"resumed  at step {trainer.step:,}")


def _train(trainer: "Trainer", sampler: "Sampler", options: Options, directory: Path) -> float:
    from ddpm_cli.training.monitor import Monitor
    from ddpm_cli.training.trainer import NonFiniteError

    settings = trainer.settings
    loss, saved = float("nan"), None
    bounds = {"first_step": trainer.step, "steps": settings.steps}
    timesteps, device = trainer.ddpm.schedule.timesteps, trainer.compute.device

    def due(every: int) -> bool:
        return every > 0 and (trainer.step % every == 0 or trainer.step == settings.steps)

    try:
        with Monitor(directory, timesteps=timesteps, device=device, **bounds) as monitor:
            monitor.config(_as_yaml(options))
            for progress in trainer.run():
                monitor.bar.update()
                if progress is not None:
                    monitor.progress(progress)
                    loss = progress.losses.mean().item()
                if due(settings.preview_every):
                    monitor.preview(trainer.step, _preview(trainer, sampler, options.seed))
                if due(settings.checkpoint_every) or trainer.step == settings.steps:
                    saved = _save(trainer, options, directory)
    except NonFiniteError as error:
        message = f"{error}; stopped before it reached the weights. Run: {directory}"
        raise RunFailed(message, NON_FINITE_STATUS) from error
    except OSError as error:
        message = f"step {trainer.step}: {error}; earlier checkpoints are untouched. Run: {directory}"
        raise RunFailed(message, status=1) from error
    except KeyboardInterrupt:
        log.info(f"stopped at step {trainer.step:,}; from the newest checkpoint on: ddpm-train resume={directory}")
        raise
    log.info(f"saved    {saved}")
    log.info(f"sample   ddpm-sample ckpt={directory}")
    return loss


def _preview(trainer: "Trainer", sampler: "Sampler", seed: int) -> "Tensor":
    """uint8 EMA samples `[N, C, H, W]` from noise that is the same at every step."""
    from ddpm_cli.images import to_uint8
    from ddpm_cli.seeds import ImageNoise

    ddpm = trainer.ddpm.with_model(trainer.ema.model)
    indices = range(trainer.settings.preview_images)
    noise = ImageNoise(seed, indices, trainer.batches.images.shape, trainer.compute.device)
    with trainer.compute.autocast():
        *_, last = ddpm.sample_states(noise, sampler)
    return to_uint8(last.x)


def _save(trainer: "Trainer", options: Options, directory: Path) -> Path:
    from ddpm_cli import checkpoint

    description = checkpoint.Description(
        step=trainer.step,
        image_shape=trainer.batches.images.shape,
        images=len(trainer.batches.images),
        config=asdict(options),
        versions=checkpoint.versions(),
    )
    return checkpoint.save(
        directory / run_directory.CHECKPOINTS,
        ema=trainer.ema.model.state_dict(),
        training=trainer.state(),
        description=description,
        keep_last=trainer.settings.keep_last,
    )


def _as_yaml(options: Options) -> str:
    return yaml.safe_dump(asdict(options), sort_keys=False)


def _pixels(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{height} x {width} x {channels}"


if __name__ == "__main__":
    main()
