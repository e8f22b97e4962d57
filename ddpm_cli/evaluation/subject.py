"""What one evaluation is of, and everything that decides its figures: by that it is known again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_cli.checkpoint.pretrained import Pretrained, Selection
from ddpm_cli.config.eval_options import OF_MODEL
from ddpm_cli.distributed.process_group import World
from ddpm_cli.evaluation.record import digest
from ddpm_cli.evaluation.samples import Given, Samples, drawn
from ddpm_cli.evaluation.setting import Setting
from ddpm_cli.io.run_dir import plain_name
from ddpm_cli.runtime.seeds import IMAGE_NOISE
from ddpm_cli.sampling.build import digest_of_model
from ddpm_cli.sampling.model import rebuild


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is evaluated.

    Args:
        selection, pretrained: the weights, and the model of them where it is looked at.
        samples: None where no metric is of images.
        made: everything that decides the features of the samples; None likewise.
        decisive: everything that decides the figures.
        path: of the record.
    """

    selection: Selection | None
    pretrained: Pretrained | None
    samples: Samples | None
    made: dict[str, Any] | None
    decisive: dict[str, Any]
    path: Path


class Looked(NamedTuple):
    """What is looked at: of a model, of images that are drawn with it, or of images that are there.

    Args:
        selection, pretrained, samples: as of `Subject`.
    """

    selection: Selection | None
    pretrained: Pretrained | None
    samples: Samples | None


def looked_at(setting: Setting, selection: Selection | None, world: World) -> Looked:
    """What a checkpoint, or the images that were given, give to look at; nothing is drawn yet.

    Args:
        selection: the weights; None: of images alone.

    Raises:
        ConfigError: if it cannot be drawn.
    """
    options = setting.options
    draws = options.looks_at_images and setting.given is None
    pretrained, samples = None, None
    if selection is not None and (draws or any(name in OF_MODEL for name in options.metrics)):
        pretrained = rebuild(selection, options, setting.compute, world)
    if draws:
        assert pretrained is not None
        assert selection is not None
        samples = drawn(setting, pretrained, selection.checkpoint.metadata.classes)
    elif options.looks_at_images:
        samples = Given(setting=setting)
    return Looked(selection, pretrained, samples)


def subject_of(setting: Setting, looked: Looked, directory: Path) -> Subject:
    """What is evaluated, once the features are ready.

    Args:
        directory: where records are.
    """
    options, (selection, pretrained, samples) = setting.options, looked
    made = None
    if samples is not None:
        assert setting.extractor is not None
        made = samples.identity() | {
            "features": setting.extractor.identity(),
            "batch_size": options.batch_size,
            "pixels": keeps_pixels(setting),
        }
    decisive = {
        "samples": made,
        "model": None if pretrained is None else digest_of_model(pretrained),
        "reference": None if setting.reference is None else setting.reference.identity(),
        "metrics": options.metrics,
        "per_class": options.per_class,
        "likelihood": _likelihood(setting) if any(name in OF_MODEL for name in options.metrics) else None,
        "keep": options.keep,
    }
    name = f"{_name(setting, selection, samples)}-{digest(decisive, 8)}"
    return Subject(
        selection=selection,
        pretrained=pretrained,
        samples=samples,
        made=made,
        decisive=decisive,
        path=directory / f"{name}.json",
    )


def _likelihood(setting: Setting) -> dict[str, Any]:
    """What decides `bpd` and `heldout` beside the model."""
    options = setting.options
    return {"images": options.likelihood_images, "seed": options.seed, "noise": IMAGE_NOISE}


def keeps_pixels(setting: Setting) -> bool:
    """Whether the images have to be on the disk: to be kept, or for those to be shown that lie nearest to others."""
    return setting.options.keep or "memorization" in setting.options.metrics


def _name(setting: Setting, selection: Selection | None, samples: Samples | None) -> str:
    """What an evaluation is called, for people; what tells it from others is added to it."""
    first = "samples" if selection is None else selection.checkpoint.path.stem
    if setting.options.samples is not None:
        first = plain_name(Path(setting.options.samples).stem)[:60]
    if samples is None:
        return f"{first}-{'-'.join(setting.options.metrics)}"
    described = samples.described()
    by = [f"{described['sampler_name']}-{described['steps']}"] if "sampler_name" in described else []
    assert setting.extractor is not None
    return "-".join([plain_name(first), *by, plain_name(setting.extractor.name)])
