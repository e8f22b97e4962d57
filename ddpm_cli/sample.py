"""`ddpm-sample`: pictures out of a checkpoint, which alone says what network and diffusion it holds.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal

from ddpm_cli import run_directory
from ddpm_cli import sample_files as files
from ddpm_cli.cli import Call, launch
from ddpm_cli.config import ConfigError, build, naming
from ddpm_cli.ending import RunError
from ddpm_cli.prepare import pixels

if TYPE_CHECKING:
    from ddpm_cli.devices import Compute
    from ddpm_cli.diffusion.denoiser import Denoiser
    from ddpm_cli.modes import Plan
    from ddpm_cli.pretrained import Pretrained

OF_MODES = ("image", "mask", "strength", "seeds")  # options that only some modes have


@dataclass(frozen=True, kw_only=True)
class Options:
    """The top-level keys of configs/sample.yaml; the groups are nodes as `ddpm_cli.config` describes them."""

    ckpt: str
    n: int
    batch_size: int
    seed: int
    weights: str
    ema_length: float | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    out: str | None
    save: Literal["grid", "images", "npz"]
    save_steps: bool
    trust: list[str]
    ckpt_sha256: str | None
    sampler: dict
    variance: dict | None
    classes: list[int] | Literal["all"] | None
    guidance: dict
    threshold: dict
    mode: dict
    image: str | None
    mask: str | None
    strength: float | None
    seeds: list[int] | None

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        for name in OF_MODES:
            if getattr(self, name) is not None and name not in self.mode:
                raise ConfigError(f"{name}: has no effect with mode={_called(self.mode)}; see --help")


def main() -> None:
    launch("ddpm-sample", "sample", "ddpm_cli.sample.Options", start)


def start(config: dict, call: Call) -> Path:
    """Sample from a checkpoint and write the pictures; returns the path of the one that shows all.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used.
        RunError: if there is not enough memory for a batch.
    """
    from ddpm_cli.devices import choose_compute, out_of_memory
    from ddpm_cli.drawing import FILM_IMAGES, draw, write
    from ddpm_cli.pretrained import load

    options = Options(**config)
    with naming("device"):
        compute = choose_compute(options.device, options.precision)
    with naming("ckpt"):
        pretrained = load(
            options.ckpt,
            weights=options.weights,
            ema_length=options.ema_length,
            trust=options.trust,
            sha256=options.ckpt_sha256,
        )
    compute.place(pretrained.ddpm)
    plan = _plan(pretrained, compute, options)
    if "seed" in call.changes and not plan.by_seed:
        raise ConfigError(f"seed: has no effect with mode={_called(options.mode)}, which draws nothing at random")
    labels = _labels(pretrained, plan, options)
    denoiser = _denoiser(pretrained, options)
    with naming("out"):
        directory = _output_directory(options, call)
    made = "" if options.ema_length is None else f" of length {options.ema_length:g}"
    print(f"{options.ckpt}: step {pretrained.step:,}, {options.weights} weights{made}, on {compute}")
    try:
        images, film = draw(
            pretrained.ddpm,
            plan,
            denoiser,
            labels,
            compute,
            batch_size=options.batch_size,
            filmed=FILM_IMAGES if options.save_steps else 0,
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        described = f"{options.batch_size} images of {pixels(pretrained.image_shape)} at a time"
        raise RunError(f"out of memory with {described}; a smaller batch_size takes less") from error
    with naming("out"):
        for path in write(images, film, plan, directory, save=options.save):
            print(path)
    return directory / files.GRID_FILE


def _plan(pretrained: "Pretrained", compute: "Compute", options: Options) -> "Plan":
    """What is to be drawn, of which the sampler and the mode have been tried."""
    from ddpm_cli.diffusion import samplers
    from ddpm_cli.modes import Setting

    schedule = pretrained.ddpm.schedule
    with naming("sampler"):
        sampler = build(_sampler_node(options, pretrained), "sampler")
        samplers.check_options(sampler, schedule)
    mode = build(options.mode, "mode")
    setting = Setting(
        schedule=schedule,
        sampler=sampler,
        image_shape=pretrained.image_shape,
        n=options.n,
        classes=len(_classes(pretrained, options)),
        seed=options.seed,
        device=compute.device,
    )
    with naming(f"mode={_called(options.mode)}"):
        return mode.plan(setting)


def _classes(pretrained: "Pretrained", options: Options) -> list[int]:
    """The classes that were asked for; none for images without labels."""
    known = pretrained.ddpm.num_classes
    if options.classes is None:
        if known is not None and _label_dropout(pretrained) == 0:
            raise ConfigError("classes: the network was trained with every label (label_dropout=0); choose classes=all")
        return []
    if options.classes == []:
        raise ConfigError("classes: names none; leave it out, or choose classes=all")
    if known is None:
        raise ConfigError("classes: has no effect, the network was trained without labels (data.num_classes)")
    if _label_dropout(pretrained) == 1:
        raise ConfigError("classes: the network was trained with every label left out (label_dropout=1)")
    if options.classes == "all":
        return list(range(known))
    for label in options.classes:
        if not 0 <= label < known:
            raise ConfigError(f"classes: the network knows 0 to {known - 1}, got {label}")
    return options.classes


def _labels(pretrained: "Pretrained", plan: "Plan", options: Options) -> list[int] | None:
    """The label of each image; rows take turns with the classes."""
    classes = _classes(pretrained, options)
    if not classes:
        return None
    if len(classes) > plan.rows:
        raise ConfigError(f"classes: {len(classes)} are more than the {plan.rows} rows that take turns with them")
    return [classes[row % len(classes)] for row in range(plan.rows) for _ in range(plan.per_row)]


def _denoiser(pretrained: "Pretrained", options: Options) -> "Callable[..., Denoiser]":
    """What makes a denoiser of labels, with guidance and threshold as asked for."""
    import torch

    guidance = build(options.guidance, "guidance")
    if guidance.scale != 1:
        if not _classes(pretrained, options):
            raise ConfigError("guidance.scale: has no effect without classes=..., of a network trained on labels")
        if _label_dropout(pretrained) == 0:
            raise ConfigError(
                "guidance.scale: the network was trained with every label (label_dropout=0), so it cannot do without"
            )
    timesteps = pretrained.ddpm.schedule.timesteps
    if guidance.interval is not None and guidance.interval[1] >= timesteps:
        raise ConfigError(f"guidance.interval: t is below the schedule's {timesteps}, got {list(guidance.interval)}")
    bounds = build(options.threshold, "threshold")
    with naming("threshold"):
        bounds(torch.zeros(1, 1, 1, 1))
    return partial(pretrained.ddpm.denoiser, guidance=guidance, threshold=bounds)


def _label_dropout(pretrained: "Pretrained") -> float | None:
    trainer = pretrained.config.get("trainer")
    return trainer.get("label_dropout") if isinstance(trainer, dict) else None


def _called(node: dict) -> str:
    """What a group's option is called on the command line, more or less: the name of what it builds."""
    return node["_target_"].rpartition(".")[2].lower()


def _sampler_node(options: Options, pretrained: "Pretrained") -> dict:
    """The sampler's configuration; where it takes a variance, that of the checkpoint unless another was chosen."""
    from ddpm_cli.diffusion.variance import is_learned

    if "variance" not in options.sampler:
        if options.variance is not None:
            raise ConfigError(
                f"variance: has no effect with sampler={_called(options.sampler)}; it belongs to sampler=ddpm"
            )
        return options.sampler
    if options.sampler["variance"] != options.variance:
        raise ConfigError("sampler.variance: is chosen by variance=fixed_small or another option of that group")
    if options.variance is None:
        return options.sampler | {"variance": pretrained.config["variance"]}
    if is_learned(build(options.variance, "variance")) and not pretrained.ddpm.learns_variance:
        raise ConfigError("variance: the network was not trained to say it; choose fixed_small or fixed_large")
    return options.sampler | {"variance": options.variance}


def _output_directory(options: Options, call: Call) -> Path:
    if options.out is None and call.sweep_directory is not None:
        return call.sweep_directory
    if options.out is None:
        path = Path(options.ckpt).absolute()
        runs = [parent for parent in (path, *path.parents) if (parent / run_directory.CHECKPOINTS).is_dir()]
        if runs and (runs[0] / run_directory.SAMPLES).is_symlink():
            raise ConfigError(f"out: {runs[0] / run_directory.SAMPLES} is a link; choose a directory with out=DIR")
        return run_directory.create(runs[0] if runs else "outputs", run_directory.SAMPLES)
    directory = Path(options.out)
    directory.mkdir(parents=True, exist_ok=True)
    for name in files.ALL:
        if (directory / name).exists():
            raise ConfigError(f"out: {directory} already holds {name}; choose another directory")
    with TemporaryFile(dir=directory):  # whether it can be written to is better known before than after sampling
        return directory


if __name__ == "__main__":
    main()
