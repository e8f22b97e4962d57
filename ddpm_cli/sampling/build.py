"""Builds the sampling loop from a command's options and a model; every choice is checked before anything is sampled.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm_cli import __version__
from ddpm_cli.config.build_ddpm import DDPM_GROUPS
from ddpm_cli.config.drawing_options import DrawingOptions
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sample_options import OF_MODES, SampleOptions, option_called
from ddpm_cli.config.sampler_spacing import is_optimized

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.checkpoint.pretrained import Pretrained
    from ddpm_cli.diffusion.guidance import Guidance
    from ddpm_cli.runtime.device import Compute
    from ddpm_cli.sampling.autoguidance import Autoguidance
    from ddpm_cli.sampling.loop import SamplingLoop
    from ddpm_cli.sampling.modes import Plan, SampleContext

# Options that only say where images go and how they are shown, or are used to find the ones that images depend on.
_NOT_IN_THE_IMAGES = ("out", "save", "trust", "weights", "ema_length", "ckpt_sha256")
# With this many calls of the network or more, compile=auto compiles it on CUDA: compiling takes about as long as it
# saves in so many. It is a count, not a time, as a compiled network may round differently: images must not depend on
# the speed of a machine.
COMPILE_FROM_CALLS = 2000


def build_loop(
    pretrained: "Pretrained", compute: "Compute", options: SampleOptions, changes: Iterable[str]
) -> "SamplingLoop":
    """The sampling loop for `options`, with classes as numbers, and a model on its device.

    Args:
        changes: the options that the command line sets.

    Raises:
        ConfigError: if this cannot be sampled; names the key.
    """
    plan = _plan(pretrained, compute, options)
    if "seed" in changes and not plan.by_seed:
        raise ConfigError(f"seed: has no effect with mode={option_called(options.mode)}, which is not random")
    plan = plan._replace(labels=_labels(pretrained, plan, options))
    return _loop(pretrained, plan, compute, options)


def build_new_images(
    pretrained: "Pretrained", compute: "Compute", options: DrawingOptions, *, n: int, labels: Sequence[int] | None
) -> "SamplingLoop":
    """The loop that samples `n` new images from noise, with labels `[n]` if there are any.

    Raises:
        ConfigError: if this cannot be sampled; names the key.
    """
    from ddpm_cli.sampling.modes import Generate

    plan = Generate().plan(_context(pretrained, compute, options, n=n, classes=0))
    plan = plan._replace(rows=n, per_row=1, labels=labels)
    return _loop(pretrained, plan, compute, options)


def _plan(pretrained: "Pretrained", compute: "Compute", options: SampleOptions) -> "Plan":
    """The plan of what to sample; its sampler and mode have been checked."""
    context = _context(pretrained, compute, options, n=options.n, classes=len(_classes(pretrained, options)))
    mode = instantiate(options.mode, "mode")
    with naming(f"mode={option_called(options.mode)}"):
        return mode.plan(context)


def _context(
    pretrained: "Pretrained", compute: "Compute", options: DrawingOptions, *, n: int, classes: int
) -> "SampleContext":
    """What a mode works with; the sampler has been checked."""
    from ddpm_cli.sampling.modes import SampleContext

    schedule = pretrained.ddpm.schedule
    sampler = instantiate(sampler_node(options, pretrained), "sampler")
    if not is_optimized(options.sampler):  # which, once chosen, begin where the mode does
        with naming("sampler"):
            sampler.times(schedule)
    return SampleContext(
        schedule=schedule,
        sampler=sampler,
        image_shape=pretrained.image_shape,
        n=n,
        classes=classes,
        seed=options.seed,
        device=compute.device,
        prediction=pretrained.ddpm.prediction,
    )


def _classes(pretrained: "Pretrained", options: SampleOptions) -> list[int]:
    """The requested classes; empty for images without labels."""
    known = pretrained.ddpm.num_classes
    if options.classes is None:
        if known is not None and pretrained.label_dropout == 0 and not pretrained.ddpm.needs_labels:
            raise ConfigError("classes: the network was trained with every label (label_dropout=0); choose classes=all")
        return []
    if options.classes == []:
        raise ConfigError("classes: is empty; leave it out, or choose classes=all")
    if known is None:
        raise ConfigError("classes: has no effect, the network was trained without labels (data.num_classes)")
    if pretrained.label_dropout == 1:
        raise ConfigError("classes: the network was trained with every label left out (label_dropout=1)")
    if options.classes == "all":
        return list(range(known))
    assert isinstance(options.classes, list), options.classes
    numbers = [int(label) for label in options.classes]
    for label in numbers:
        if not 0 <= label < known:
            raise ConfigError(f"classes: the network knows 0 to {known - 1}, got {label}")
    return numbers


def _labels(pretrained: "Pretrained", plan: "Plan", options: SampleOptions) -> list[int] | None:
    """The label of each image: the classes are given to the rows in turn."""
    classes = _classes(pretrained, options)
    if not classes:
        return _drawn_labels(pretrained, plan, options) if pretrained.ddpm.needs_labels else None
    if len(classes) > plan.rows:
        raise ConfigError(f"classes: {len(classes)} classes, but only {plan.rows} rows to give them to in turn")
    return [classes[image // plan.per_row % len(classes)] for image in range(plan.images)]


def _drawn_labels(pretrained: "Pretrained", plan: "Plan", options: SampleOptions) -> list[int]:
    """A label for each image, if the network needs one: all equally likely, and the same for image i in every run."""
    from ddpm_cli.runtime.seeds import derive_seed

    known = pretrained.ddpm.num_classes
    assert known is not None
    if not plan.by_seed:
        raise ConfigError(
            f"classes: the network needs a label for each image (model.null_label=false), and "
            f"mode={option_called(options.mode)} chooses none at random; name them"
        )
    return [derive_seed(options.seed, "label", image) % known for image in range(plan.images)]


def _loop(pretrained: "Pretrained", plan: "Plan", compute: "Compute", options: DrawingOptions) -> "SamplingLoop":
    """The loop that samples a plan, with the requested guidance and threshold."""
    from ddpm_cli.sampling.autoguidance import read_guide
    from ddpm_cli.sampling.loop import SamplingLoop

    guidance, by_another = guidance_of(options)
    guide = None
    timesteps = pretrained.ddpm.schedule.timesteps
    if guidance.interval is not None and guidance.interval[1] >= timesteps:
        raise ConfigError(f"guidance.interval: must be below the schedule's {timesteps}, got {list(guidance.interval)}")
    if by_another is not None:
        guide = read_guide(by_another, pretrained, compute, trust=options.trust)
    else:
        _check_labels_guide(pretrained, guidance, labelled=plan.labels is not None)
    threshold = instantiate(options.threshold, "threshold")
    ddpm = None if guide is None else guide.ddpm
    denoiser = partial(pretrained.ddpm.denoiser, guidance=guidance, threshold=threshold, guide=ddpm)
    batch = _compiled_batch(plan, compute, options)
    return SamplingLoop(pretrained.ddpm, plan, compute, denoiser=denoiser, guide=guide, compiled=batch)


def guidance_of(options: DrawingOptions) -> "tuple[Guidance, Autoguidance | None]":
    """How strongly to guide, and the guide if it is another model and not the network without labels."""
    from ddpm_cli.sampling.autoguidance import Autoguidance

    chosen = instantiate(options.guidance, "guidance")
    return (chosen.guidance, chosen) if isinstance(chosen, Autoguidance) else (chosen, None)


def _check_labels_guide(pretrained: "Pretrained", guidance: "Guidance", *, labelled: bool) -> None:
    """Raise ConfigError if guidance needs labels, and cannot use them."""
    if guidance.scale == 1:
        return
    if not labelled:
        raise ConfigError("guidance.scale: has no effect without classes=..., and needs a network trained on labels")
    if pretrained.label_dropout == 0:
        why = "model.null_label=false" if pretrained.ddpm.needs_labels else "label_dropout=0"
        raise ConfigError(f"guidance.scale: the network was trained with every label ({why}) and needs one")


def sampler_node(options: DrawingOptions, pretrained: "Pretrained") -> dict:
    """The sampler's configuration; if it takes a variance, that of the checkpoint unless another was chosen."""
    if "variance" not in options.sampler:
        if options.variance is not None:
            raise ConfigError(
                f"variance: has no effect with sampler={option_called(options.sampler)}; it belongs to sampler=ddpm"
            )
        return options.sampler
    if options.sampler["variance"] != options.variance:
        raise ConfigError("sampler.variance: choose it with variance=fixed_small, or another option of that group")
    if options.variance is None:
        return options.sampler | {"variance": pretrained.config["variance"]}
    if instantiate(options.variance, "variance").learned and not pretrained.ddpm.learns_variance:
        raise ConfigError("variance: the network does not predict a variance; choose fixed_small or fixed_large")
    return options.sampler | {"variance": options.variance}


def _compiled_batch(plan: "Plan", compute: "Compute", options: DrawingOptions) -> int | None:
    """The batch size for which to compile the network; None: do not compile."""
    return min(options.batch_size, plan.images) if _compiled(plan, compute, options) else None


def _compiled(plan: "Plan", compute: "Compute", options: DrawingOptions) -> bool:
    if options.compile != "auto":
        return options.compile
    per_step = 1 if options.guidance.get("scale") in (0, 1) else 2
    calls = plan.steps * per_step * (plan.images // options.batch_size)
    return compute.device.type == "cuda" and calls >= COMPILE_FROM_CALLS


def identity(pretrained: "Pretrained", loop: "SamplingLoop", options: SampleOptions) -> dict[str, object]:
    """Everything that the images depend on, as JSON: the content of files, not their paths."""
    from ddpm_cli.runtime.seeds import IMAGE_NOISE

    decisive = {key: value for key, value in asdict(options).items() if key not in _NOT_IN_THE_IMAGES}
    mask = None if options.mask is None else Path(options.mask).expanduser().read_bytes()
    plan = loop.plan
    return decisive | {
        "image": None if plan.shown is None else f"pictures {_digest([plan.shown])}",
        "mask": None if mask is None else f"picture {_digest([], mask)}",
        "version": __version__,
        "noise": IMAGE_NOISE,
        "ckpt": f"step {pretrained.step:,}, {digest_of_model(pretrained)}",
        "device": loop.compute.device.type,
        "precision": loop.compute.precision,
        "compile": loop.compiled is not None,
        "guidance": guidance_identity(options, loop),
        "mode": {key: value for key, value in options.mode.items() if key not in OF_MODES},
    }


def guidance_identity(options: DrawingOptions, loop: "SamplingLoop") -> dict:
    """What the guidance of the images depends on: the content of a guide, not its path."""
    if loop.guide is None:
        return dict(options.guidance)
    return options.guidance | {"guide": _digest(loop.guide.ddpm.model.state_dict().values())}


def digest_of_model(pretrained: "Pretrained") -> str:
    """A digest of the weights that are used, whichever file or average they come from, and of their diffusion."""
    described = json.dumps({group: pretrained.config[group] for group in DDPM_GROUPS}, sort_keys=True, default=str)
    return _digest(pretrained.ddpm.model.state_dict().values(), described.encode())


def _digest(tensors: "Iterable[Tensor]", more: bytes = b"") -> str:
    import torch

    digest = hashlib.sha256(more)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
