"""`ddpm-sample`: pictures out of a checkpoint, which alone says what network and diffusion it holds.

Heavy modules are imported inside the functions: `--help` and a mistyped key are answered without torch.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal

from ddpm_cli import run_directory
from ddpm_cli.cli import Call, launch
from ddpm_cli.config import ConfigError, build, naming
from ddpm_cli.ending import RunError
from ddpm_cli.prepare import pixels

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.devices import Compute
    from ddpm_cli.diffusion.samplers import Sampler
    from ddpm_cli.pretrained import Pretrained

GRID_FILE = "samples.png"
IMAGES_DIRECTORY = "images"
NPZ_FILE = "samples.npz"
STRIP_FILE = "steps.png"
FILM_FILE = "steps.gif"
GRID_IMAGES = 400  # more would make a picture nobody can open; the others are in save=images or save=npz
FILM_IMAGES = 8
FILM_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """The top-level keys of configs/sample.yaml; `sampler` and `variance` are nodes as `ddpm_cli.config` has them."""

    ckpt: str
    n: int
    batch_size: int
    seed: int
    weights: Literal["ema", "model"]
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    out: str | None
    save: Literal["grid", "images", "npz"]
    save_steps: bool
    trust: list[str]
    ckpt_sha256: str | None
    sampler: dict
    variance: dict | None

    def __post_init__(self) -> None:
        for name in ("n", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")


def main() -> None:
    launch("ddpm-sample", "sample", "ddpm_cli.sample.Options", start)


def start(config: dict, call: Call) -> None:
    """Sample from a checkpoint and write the pictures.

    Raises:
        ConfigError: before anything has been written, if the configuration or the checkpoint cannot be used.
        RunError: if there is not enough memory for a batch.
    """
    from ddpm_cli.devices import choose_compute, out_of_memory
    from ddpm_cli.diffusion import samplers
    from ddpm_cli.pretrained import load

    options = Options(**config)
    with naming("device"):
        compute = choose_compute(options.device, options.precision)
    with naming("ckpt"):
        pretrained = load(options.ckpt, weights=options.weights, trust=options.trust, sha256=options.ckpt_sha256)
    compute.place(pretrained.ddpm)
    with naming("sampler"):
        sampler = build(_sampler_node(options, pretrained.config), "sampler")
        samplers.check_options(sampler, pretrained.ddpm.schedule)
    with naming("out"):
        directory = _output_directory(options, call)
    print(f"{options.ckpt}: step {pretrained.step:,}, {options.weights} weights, on {compute}")
    try:
        images, film = _draw(pretrained, sampler, compute, options)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        described = f"{options.batch_size} images of {pixels(pretrained.image_shape)} at a time"
        raise RunError(f"out of memory with {described}; a smaller batch_size takes less") from error
    with naming("out"):
        _write(images, film, directory, options)


def _sampler_node(options: Options, trained: dict) -> dict:
    """The sampler's configuration; where it takes a variance, that of the checkpoint unless another was chosen."""
    if "variance" not in options.sampler:
        if options.variance is not None:
            name = options.sampler["_target_"].rpartition(".")[2]
            raise ConfigError(f"variance: has no effect with sampler={name}; it belongs to sampler=ddpm")
        return options.sampler
    if options.sampler["variance"] != options.variance:
        raise ConfigError("sampler.variance: is chosen by variance=fixed_small or another option of that group")
    variance = options.variance if options.variance is not None else trained["variance"]
    return options.sampler | {"variance": variance}


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
    for name in (GRID_FILE, IMAGES_DIRECTORY, NPZ_FILE, STRIP_FILE, FILM_FILE):
        if (directory / name).exists():
            raise ConfigError(f"out: {directory} already holds {name}; choose another directory")
    with TemporaryFile(dir=directory):  # whether it can be written to is better known before than after sampling
        return directory


def _draw(
    pretrained: "Pretrained", sampler: "Sampler", compute: "Compute", options: Options
) -> "tuple[Tensor, Tensor | None]":
    """uint8 images `[N, C, H, W]`, and of the first few their states on the way, `[frames, images, C, H, W]`."""
    import torch
    from tqdm import tqdm

    from ddpm_cli.images import to_uint8
    from ddpm_cli.seeds import ImageNoise

    images, film = [], []
    starts = range(0, options.n, options.batch_size)
    with tqdm(desc="sampling", unit="step", disable=None, dynamic_ncols=True) as bar:
        for first in starts:
            indices = range(first, min(first + options.batch_size, options.n))
            noise = ImageNoise(options.seed, indices, pretrained.image_shape, compute.device)
            filmed = max(0, FILM_IMAGES - first) if options.save_steps else 0
            frames = []
            with compute.autocast():
                for state in pretrained.ddpm.sample_states(noise, sampler):
                    bar.total = state.steps * len(starts)
                    bar.update()
                    if filmed > 0 and _is_frame(state.step, state.steps):
                        frames.append(to_uint8(state.x[:filmed]).cpu())
                    if state.step == state.steps:
                        images.append(to_uint8(state.x).cpu())
            if frames:
                film.append(torch.stack(frames))
    return torch.cat(images), torch.cat(film, dim=1) if film else None


def _is_frame(step: int, steps: int) -> bool:
    """Does the state after `step` of `steps` belong in a film of at most FILM_FRAMES states that ends with the last?"""
    return (step * FILM_FRAMES) // steps != ((step - 1) * FILM_FRAMES) // steps


def _write(images: "Tensor", film: "Tensor | None", directory: Path, options: Options) -> None:
    import numpy as np

    from ddpm_cli.images import grid, save_gif, save_png

    written = [directory / GRID_FILE]
    save_png(grid(images[:GRID_IMAGES]), directory / GRID_FILE)
    if options.save == "images":
        (directory / IMAGES_DIRECTORY).mkdir()
        for i, image in enumerate(images):
            save_png(image, directory / IMAGES_DIRECTORY / f"{i:06d}.png")
        written.append(directory / IMAGES_DIRECTORY)
    if options.save == "npz":
        np.savez(directory / NPZ_FILE, images.permute(0, 2, 3, 1).numpy())
        written.append(directory / NPZ_FILE)
    if film is not None:
        frames, shown = film.shape[:2]
        save_png(grid(film.transpose(0, 1).flatten(0, 1), columns=frames), directory / STRIP_FILE)
        save_gif([grid(frame, columns=shown) for frame in film], directory / FILM_FILE)
        written += [directory / STRIP_FILE, directory / FILM_FILE]
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
