"""The samples that are evaluated: drawn with a model, or there already; and what decides what they are."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm_cli import __version__
from ddpm_cli.checkpoint.pretrained import Pretrained
from ddpm_cli.config.errors import ConfigError
from ddpm_cli.config.eval_options import EvalOptions
from ddpm_cli.config.instantiate import instantiate
from ddpm_cli.config.sample_options import option_called
from ddpm_cli.config.shipped import options_by_target
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised
from ddpm_cli.diffusion.guidance import guided
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.record import digest
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.runtime.seeds import IMAGE_NOISE
from ddpm_cli.sampling.build import (
    build_new_images,
    digest_of_model,
    guidance_identity,
    guidance_of,
    sampler_node,
)
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.model import compile_now

Take = Callable[[range, Tensor], object]  # of a batch: the indices of its images, and these, uint8 [B, C, H, W]


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images that are there already, by whatever program."""

    setting: Setting

    @property
    def labels(self) -> np.ndarray | None:
        """int64 `[N]`, if they came with some."""
        assert self.setting.given is not None
        return None if self.setting.given.labels is None else self.setting.given.labels[: self.setting.n]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        assert self.setting.given is not None
        return self.setting.given.shape

    def identity(self) -> dict[str, Any]:
        """Everything that decides the images: what is in the files; not where they lie."""
        assert self.setting.given is not None
        return {"samples": self.setting.given.sha256, "n": self.setting.n}

    def described(self) -> dict[str, Any]:
        """What a record says of them."""
        assert self.setting.given is not None
        return {"source": str(self.setting.options.samples), "n": self.setting.n, "sha256": self.setting.given.sha256}

    def batches(self, missing: Sequence[range], take: Take, *, show_progress: bool) -> None:
        """Hand over each of these batches."""
        given = self.setting.given
        assert given is not None
        hidden = None if show_progress else True
        total = sum(map(len, missing))
        with tqdm(total=total, desc="reading", unit="image", disable=hidden, dynamic_ncols=True) as bar:
            for indices in missing:
                take(indices, torch.from_numpy(given[np.arange(indices.start, indices.stop)]))
                bar.update(len(indices))


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """New images of a model."""

    setting: Setting
    pretrained: Pretrained
    loop: SamplingLoop
    labels: np.ndarray | None
    by_class: str | None  # how the labels were chosen

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.pretrained.image_shape

    def identity(self) -> dict[str, Any]:
        """As of `Given`."""
        options, compute = self.setting.options, self.setting.compute
        return {
            "version": __version__,
            "noise": IMAGE_NOISE,
            "ckpt": f"step {self.pretrained.step:,}, {digest_of_model(self.pretrained)}",
            "sampler": sampler_node(options, self.pretrained),
            "guidance": guidance_identity(options, self.loop),
            "threshold": options.threshold,
            "seed": options.seed,
            "n": self.setting.n,
            "labels": None if self.labels is None else digest(self.labels.tolist()),
            "device": compute.device.type,
            "precision": compute.precision,
            "compile": self.loop.compiled is not None,
        }

    def described(self) -> dict[str, Any]:
        """As of `Given`."""
        options, compute = self.setting.options, self.setting.compute
        sampler = sampler_node(options, self.pretrained)
        return {
            "source": "drawn",
            "n": self.setting.n,
            "seed": options.seed,
            "sampler": sampler,
            "sampler_name": option_name("sampler", sampler),
            "steps": self.loop.plan.steps,
            "network_calls": network_calls(self.pretrained.ddpm, sampler, options),
            "guidance": {key: value for key, value in self._guidance().items() if key != "_target_"},
            "threshold": option_name("threshold", options.threshold),
            "variance": option_name("variance", sampler["variance"]) if "variance" in sampler else None,
            "precision": compute.precision,
            "device": str(compute.device),
            "classes": self.by_class,
        }

    def _guidance(self) -> dict[str, Any]:
        """The options, and by what it was guided if that is another model."""
        guide = self.loop.guide
        whose = {} if guide is None else {"guide": guide.said, "guide_digest": self.identity()["guidance"]["guide"]}
        return self.setting.options.guidance | whose

    def batches(self, missing: Sequence[range], take: Take, *, show_progress: bool) -> None:
        """As of `Given`."""
        if missing and self.loop.compiled is not None:
            compile_now(self.loop, self.setting.options, self.image_shape)
        self.loop.draw(missing, lambda indices, images, _: take(indices, images), show_progress=show_progress)


Samples = Given | Drawn


def drawn(setting: Setting, pretrained: Pretrained, classes: Sequence[str]) -> Drawn:
    """The samples of a model, of which none is drawn yet.

    Args:
        classes: the names of its labels.

    Raises:
        ConfigError: if they cannot be drawn.
    """
    options = setting.options
    labels, by_class = _labels(setting, pretrained, classes)
    guidance, by_another = guidance_of(options)
    if labels is None and by_another is None and guidance.scale != 1:
        raise ConfigError("guidance.scale: has no effect, the network was trained without labels (data.num_classes)")
    if labels is None and options.per_class:
        raise ConfigError("per_class: needs a network trained on labels (data.num_classes), or samples with labels")
    loop = build_new_images(
        pretrained, setting.compute, options, n=setting.n, labels=None if labels is None else labels.tolist()
    )
    return Drawn(setting=setting, pretrained=pretrained, loop=loop, labels=labels, by_class=by_class)


def _labels(setting: Setting, pretrained: Pretrained, classes: Sequence[str]) -> tuple[np.ndarray | None, str | None]:
    """The label of every sample, as those of the reference are distributed; and how to say so."""
    known = pretrained.ddpm.num_classes
    if known is None or pretrained.label_dropout == 1:
        return None, None
    n, reference = setting.n, setting.reference
    same = reference is not None and reference.labels is not None and tuple(reference.class_names) == tuple(classes)
    if not same:
        return np.arange(n, dtype=np.int64) % known, "classes in equal shares"
    assert reference is not None
    assert reference.labels is not None
    return spread(reference.labels, n), "classes as in the reference"


def spread(labels: np.ndarray, n: int) -> np.ndarray:
    """n labels, int64 `[n]`, in the proportions of others, int64 `[N]`, and in turns: any part has about the same."""
    total = len(labels)
    chosen = np.sort(labels)[(2 * np.arange(n) + 1) * total // (2 * n)]
    counts = np.bincount(chosen)
    first = np.cumsum(counts) - counts
    turn = (np.arange(n) - first[chosen] + 0.5) / counts[chosen]  # where in its class each is, in (0, 1)
    return chosen[np.argsort(turn, kind="stable")].astype(np.int64)


def network_calls(ddpm: DDPM, sampler: dict, options: EvalOptions) -> int:
    """How often the network is asked for one image; found by solving for one pixel that is nothing."""
    calls = 0

    def counted(x_t: Tensor, t: int) -> Denoised:
        nonlocal calls
        calls += 1
        return Denoised(torch.zeros_like(x_t), torch.zeros_like(x_t), torch.zeros_like(x_t))

    schedule = ddpm.schedule
    solver, guidance = instantiate(sampler, "sampler"), guidance_of(options)[0]
    nothing = torch.zeros(1, 1, 1, 1, device=next(ddpm.model.parameters()).device)
    denoise = guided(counted, counted, schedule, guidance)
    for _ in solver.solve(denoise, schedule, solver.times(schedule), nothing, lambda: nothing):
        pass
    return calls


def option_name(group: str, node: dict) -> str:
    """What an option is called on the command line."""
    names = options_by_target(group).get(node["_target_"], [])
    return names[0] if names else option_called(node)


def missing_of(world: World, missing: Iterable[range]) -> list[range]:
    """This rank's part of what is still to be made, as rank 0 sees it."""
    return world.broadcast(list(missing))[world.rank :: world.size]
