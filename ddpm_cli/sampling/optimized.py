"""`sampler.spacing=optimized`: timesteps chosen for a model, and kept beside its checkpoint.

RUN/timesteps/ has a small file for each setting: what the choice depends on, and the choice. The file may be anybody's:
it is used only if it is for exactly this setting and its timesteps are possible.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ddpm_cli.config.drawing_options import DrawingOptions
from ddpm_cli.config.errors import ConfigError, naming, shown
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sampler_spacing import OPTIMIZED, is_optimized
from ddpm_cli.io import run_dir
from ddpm_cli.io.text import printable
from ddpm_cli.sampling.build import digest_of_model, guidance_identity, sampler_node

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.checkpoint.pretrained import Pretrained, Selection
    from ddpm_cli.diffusion.denoiser import Denoiser
    from ddpm_cli.diffusion.optimized_steps import Optimized
    from ddpm_cli.distributed.process_group import World
    from ddpm_cli.sampling.loop import SamplingLoop

Options = TypeVar("Options", bound=DrawingOptions)
NOISES = 32  # images on which the choice is made, with labels in turn
MOST_FILE = 2**16  # bytes; ours have 2 kB
METHOD = 1  # changes if the method would choose differently for the same setting


class _Setting(NamedTuple):
    """What a choice depends on."""

    pretrained: "Pretrained"
    loop: "SamplingLoop"  # of the images, with as many timesteps of another spacing
    batch_size: int
    sampler: dict
    decisive: dict[str, Any]  # all of it, as JSON


def until_chosen(options: Options) -> Options:
    """The options with another spacing instead of `optimized`, with which plans are made and checked."""
    if not is_optimized(options.sampler):
        return options
    return replace(options, sampler=options.sampler | {"spacing": "trailing"})


def with_chosen(
    options: Options, pretrained: "Pretrained", loop: "SamplingLoop", selection: "Selection", world: "World"
) -> Options:
    """The options with the timesteps chosen for this model instead of their number; rank 0 chooses for all.

    Args:
        options: with `optimized`.
        loop: what `until_chosen` would sample.

    Raises:
        ConfigError: if there is nothing to choose, with this many steps or in a mode that does not sample from noise.
        RunError: if the images are not finite.
    """
    node = sampler_node(options, pretrained)
    first = loop.plan.first
    if first is None:
        raise ConfigError(
            f"sampler.spacing: {OPTIMIZED} is only for sampling straight from noise to image, with mode=generate, "
            "interpolate or edit; choose spacing=trailing"
        )
    setting = _Setting(pretrained, loop, options.batch_size, node, _decisive(options, pretrained, loop, node))
    file = _file(selection, setting.decisive)
    with naming("sampler"):
        times = world.on_main(lambda: _found_or_chosen(setting, file))
    return replace(options, sampler=options.sampler | {"steps": times})


def _decisive(options: DrawingOptions, pretrained: "Pretrained", loop: "SamplingLoop", node: dict) -> dict[str, Any]:
    labels = None if loop.plan.labels is None else sorted(set(loop.plan.labels))
    return {
        "method": METHOD,
        "model": digest_of_model(pretrained),
        "sampler": node,
        "guidance": guidance_identity(options, loop),
        "threshold": options.threshold,
        "labels": labels,
        "first": loop.plan.first,
    }


def _file(selection: "Selection", decisive: Mapping[str, Any]) -> Path | None:
    """The file of a choice; None: the checkpoint is not in a run."""
    checkpoint = selection.checkpoint.path.absolute()
    if not checkpoint.is_dir() or checkpoint.parent.name != run_dir.CHECKPOINTS:
        return None
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:16]
    return checkpoint.parent.parent / run_dir.TIMESTEPS / f"{checkpoint.name}-{digest}.json"


def _found_or_chosen(setting: _Setting, file: Path | None) -> list[int]:
    """The timesteps kept for this setting; if there are none, choose them now, and keep them if possible."""
    found = None if file is None else _kept(file, setting)
    if found is not None:
        print(f"timesteps: {_text(found)}, from {printable(str(file))}")
        return found
    chosen = _chosen(setting)
    print(
        f"timesteps: {_text(chosen.times)}, which end {chosen.error:.3f} from a fine solution; "
        f"of {chosen.fixed} {chosen.fixed_error:.3f}"
    )
    not_kept = "it is not in a run" if file is None else _keep(file, chosen, setting)
    if not_kept is not None:
        print(f"they are not kept beside the checkpoint ({printable(not_kept)}), and are chosen again each time")
    return chosen.times


def _text(times: list[int]) -> str:
    return ", ".join(map(str, times))


# On the disk ---------------------------------------------------------------------------------------------------------


def _kept(file: Path, setting: _Setting) -> list[int] | None:
    """The timesteps in a file, if they are possible and for exactly this setting; else None, and the log says why."""
    from ddpm_cli.diffusion.spacing import visited
    from ddpm_cli.io import plain_files

    try:
        found = json.loads(plain_files.read(file, MOST_FILE))
        times = found["times"]
        if found["setting"] != _as_json(setting.decisive):
            raise ValueError("it is for other settings")
        if len(times) != setting.sampler["steps"] or any(type(t) is not int for t in times):
            raise ValueError("it names another number of timesteps")
        return visited(setting.pretrained.ddpm.schedule, times, OPTIMIZED, setting.loop.plan.first)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) if isinstance(error, OSError | ValueError) else "it is not ours"
        print(f"timesteps: {printable(str(file))} cannot be used ({printable(shown(reason))}): choosing them again")
        return None


def _keep(file: Path, chosen: "Optimized", setting: _Setting) -> str | None:
    """Write a choice to its file, durably and all or nothing, while others may do the same; returns why it failed."""
    from ddpm_cli.data import cache_files

    content = {"times": chosen.times, "error": chosen.error, chosen.fixed: chosen.fixed_error}
    try:
        if file.parent.is_symlink():
            return f"{file.parent} is a link"
        file.parent.mkdir(exist_ok=True)
        cache_files.remove_abandoned(file.parent)
        cache_files.write(file, f"{json.dumps(content | {'setting': setting.decisive}, indent=2)}\n".encode())
    except OSError as error:
        return f"{file.parent}: {error.strerror or error}"
    return None


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


# The choice ----------------------------------------------------------------------------------------------------------


def _chosen(setting: _Setting) -> "Optimized":
    """The timesteps that bring `NOISES` images closest to a fine solution.

    An edited picture starts below T-1; the search then starts from the fine solution's images at that noise level.
    """
    import torch
    from tqdm import tqdm

    from ddpm_cli.diffusion.noise_schedule import expand_t
    from ddpm_cli.diffusion.optimized_steps import FINE_STEPS, MOST_CALLS, optimized_steps, solution
    from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError
    from ddpm_cli.runtime.seeds import ImageNoise, derive_seed
    from ddpm_cli.sampling.loop import NOT_FINITE

    (pretrained, loop, *_), first = setting, setting.loop.plan.first
    ddpm, schedule = pretrained.ddpm, pretrained.ddpm.schedule
    noise = ImageNoise(derive_seed("timesteps"), range(NOISES), pretrained.image_shape, loop.compute.device)
    sampler = instantiate(setting.sampler, "sampler")
    most = MOST_CALLS + 2 * FINE_STEPS
    with (
        tqdm(total=most, desc="choosing timesteps", unit="call", disable=None, dynamic_ncols=True, leave=False) as bar,
        loop.compute.autocast(),
        ddpm.evaluating(),
        torch.no_grad(),
    ):
        denoise, x = _denoiser(setting, bar.update), noise()
        if first is not None and first < schedule.timesteps - 1:
            alpha, sigma = schedule.alpha_sigma(expand_t(first, x), x.shape)
            x = alpha * solution(schedule, denoise, x, schedule.timesteps - 1) + sigma * noise()
        try:
            return optimized_steps(sampler, schedule, denoise, x, first=first)
        except FloatingPointError as error:
            raise RunError(NOT_FINITE, NON_FINITE) from error


def _denoiser(setting: _Setting, asked: Callable[[], object]) -> "Denoiser":
    """The denoiser for all noises, in batches no larger than those of sampling.

    Args:
        asked: called at each call of the denoiser.
    """
    import torch

    from ddpm_cli.diffusion.denoiser import Denoised

    loop, labels = setting.loop, setting.decisive["labels"]
    parts = list(torch.arange(NOISES, device=loop.compute.device).split(setting.batch_size))
    known = None if labels is None else torch.tensor(labels, device=loop.compute.device)
    of_parts = [loop.denoiser(None if known is None else known[part % len(known)]) for part in parts]

    def denoise(x_t: "Tensor", t: int) -> Denoised:
        asked()
        answers = [of_part(x_t[part], t) for of_part, part in zip(of_parts, parts, strict=True)]
        x_0, eps, variance = (list(of_all) for of_all in zip(*answers, strict=True))
        together = None if variance[0] is None else torch.cat(variance)
        return Denoised(torch.cat(x_0), torch.cat(eps), together)

    return denoise
