"""The figures of one evaluation, with a progress bar and the time they take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from ddpm_cli.config.errors import naming
from ddpm_cli.config.eval_options import OF_FEATURES
from ddpm_cli.evaluation import metrics
from ddpm_cli.evaluation.feature_store import FeatureStore
from ddpm_cli.evaluation.features.extractor import Extractor
from ddpm_cli.evaluation.metrics import Comparison, Measured, Side
from ddpm_cli.evaluation.samples import Samples
from ddpm_cli.evaluation.setting import Setting

CHUNK = 1024  # features that are asked for their class probabilities at a time


@dataclass
class Clock:
    """The seconds spent, by what they were spent on."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def spent_on(self, what: str) -> Iterator[None]:
        """Count the time inside."""
        since = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - since


def of_images(
    setting: Setting, samples: Samples, store: FeatureStore, clock: Clock
) -> tuple[list[Measured], list[str]]:
    """The figures of the samples' features, and remarks on them."""
    options, extractor, reference = setting.options, setting.extractor, setting.reference
    assert extractor is not None
    assert reference is not None
    features = store.features()
    with clock.spent_on("reference"):
        other = reference_side(setting)
    comparison = Comparison(
        samples=Side(features=features, labels=samples.labels),
        reference=other,
        seed=options.seed,
        probabilities=partial(_probabilities, extractor, features) if "inception_score" in options.metrics else None,
        class_names=reference.class_names,
    )
    wanted = [name for name in options.metrics if name in OF_FEATURES]
    found: list[Measured] = []
    with (
        clock.spent_on("figures"),
        naming("metrics"),
        tqdm(desc="figures", unit="figure", disable=None, dynamic_ncols=True, leave=False) as bar,
    ):
        for measured in metrics.measure(comparison, wanted, per_class=options.per_class):
            found.append(measured)
            bar.update()
        remarks = list(metrics.remarks(comparison, found, extractor.name))
    if 4 in (samples.image_shape[0], *(reference.image_shape or ())[:1]):
        remarks.append("features are of the images over white; they do not see alpha otherwise")
    return found, remarks


def _probabilities(extractor: Extractor, features: np.ndarray) -> Iterator[np.ndarray]:
    """`[B, classes]` after `[B, classes]`, of features `[N, D]`."""
    for first in range(0, len(features), CHUNK):
        probabilities = extractor.class_probabilities(torch.from_numpy(np.array(features[first : first + CHUNK])))
        assert probabilities is not None
        yield probabilities.numpy()


def reference_side(setting: Setting) -> Side:
    """Features or statistics of the reference, from the cache if it has them."""
    assert setting.reference is not None
    assert setting.extractor is not None
    return setting.reference.side(setting.extractor, setting.options.batch_size)
