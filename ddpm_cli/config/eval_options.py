"""The top-level options of configs/eval.yaml."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ddpm_cli.config.drawing_options import DrawingOptions
from ddpm_cli.config.errors import ConfigError, nearest

# The metrics, by what they are measured on: the samples' features, or the model itself.
OF_FEATURES = ("fd", "fd_inf", "kd", "precision_recall", "inception_score", "memorization")
OF_MODEL = ("bpd", "heldout")
METRICS = (*OF_FEATURES, *OF_MODEL)
MOST_IMAGES = 10_000_000  # their labels and batches are held in memory
# Metrics of one class's samples too. Not the Inception score, which rewards many classes.
PER_CLASS = ("fd", "fd_inf", "kd", "precision_recall", "memorization")

_OF_DRAWING = ("sampler", "guidance", "threshold", "variance", "seed", "weights", "ema_length", "compile", "precision")
_OF_SAMPLES = ("samples", "n", "features", "reference", "keep", "per_class")  # used only by metrics of features


@dataclass(frozen=True, kw_only=True)
class DataPlace:
    """Where a run's images are now, if not where its configuration says.

    Args:
        path: like `data.path` of training.
        root: like `data.root` of training.
        cache_dir: like `data.cache_dir` of training.
        download: download them, if the data set can be downloaded.
    """

    path: str | None = None
    root: str | None = None
    cache_dir: str | None = None
    download: bool = False

    def given(self) -> dict[str, str | bool]:
        """The values that were given, by option of `data`."""
        return {key: value for key, value in vars(self).items() if value not in (None, False)}


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DrawingOptions):
    """The top-level keys of configs/eval.yaml; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    ckpt: str | None
    samples: str | None
    checkpoints: Literal["all"] | None
    metrics: list[str]
    per_class: bool
    n: int | None
    keep: bool
    likelihood_images: int
    data: dict
    features: dict | None
    reference: dict

    def __post_init__(self) -> None:
        for name in ("n", "batch_size", "likelihood_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: must be at least 1, got {value}")
        if self.n == 1:
            raise ConfigError("n: must be at least 2, got 1: one image has no covariance")
        if self.n is not None and self.n > MOST_IMAGES:
            raise ConfigError(f"n: must be at most {MOST_IMAGES:,}, got {self.n:,}")
        _check_metrics(self.metrics)
        if self.ckpt is None and self.samples is None:
            raise ConfigError("ckpt: must be given, as ckpt=RUN; or samples=DIR, to evaluate existing images")
        of_model = [name for name in self.metrics if name in OF_MODEL]
        if self.ckpt is None and of_model:
            raise ConfigError(f"metrics: {of_model[0]} is measured on a model; name it with ckpt=RUN")
        if self.checkpoints is not None and (self.samples is not None or self.ckpt_sha256 is not None):
            other = "samples" if self.samples is not None else "ckpt_sha256"
            raise ConfigError(f"checkpoints: evaluates several checkpoints, but {other} is for one; leave out either")

    @property
    def looks_at_images(self) -> bool:
        """Whether any metric is measured on the samples' features."""
        return any(name in OF_FEATURES for name in self.metrics)

    def check_effect(self, changes: Collection[str]) -> None:
        """Raise ConfigError for an option of the command line that has no effect.

        Args:
            changes: the dotted keys that the command line sets.
        """
        said = {key.partition(".")[0]: key for key in changes}
        drawn = self.looks_at_images and self.samples is None
        for name in _OF_DRAWING if not drawn else ():
            loads = self.ckpt is not None and name in ("weights", "ema_length", "precision", "seed")
            if name in said and not (loads and any(metric in OF_MODEL for metric in self.metrics)):
                why = f"samples={self.samples}" if self.samples is not None else f"metrics=[{','.join(self.metrics)}]"
                raise ConfigError(f"{said[name]}: has no effect with {why}; nothing is sampled")
        for name in _OF_SAMPLES if not self.looks_at_images else ():
            if name in said:
                raise ConfigError(f"{said[name]}: has no effect with metrics=[{','.join(self.metrics)}]")
        if "likelihood_images" in said and not any(name in OF_MODEL for name in self.metrics):
            raise ConfigError(f"likelihood_images: has an effect only with metrics={list(OF_MODEL)}")
        if self.keep and self.samples is not None:
            raise ConfigError(f"keep: has no effect with samples={self.samples}, which exist already")
        if self.per_class and not any(name in PER_CLASS for name in self.metrics):
            raise ConfigError(f"per_class: has an effect only with {', '.join(PER_CLASS)}")


OPTIONS = "ddpm_cli.config.eval_options.EvalOptions"


def _check_metrics(names: list[str]) -> None:
    if not names:
        raise ConfigError(f"metrics: is empty; choose from {', '.join(METRICS)}")
    for name in names:
        if name not in METRICS:
            raise ConfigError(
                f"metrics: no such metric {name!r}{nearest(name, METRICS)}; choose from {', '.join(METRICS)}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"metrics: names {name} twice")
