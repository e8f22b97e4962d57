"""Evaluates a run's EMA while it trains: the loss on held-out images, and the quality of samples.

Noise, timesteps and samples depend on the run's seed and are the same at every step, so that a curve shows only the
weights. None of it uses the random streams of training.
"""

import math
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.data.holdout import selected
from ddpm_cli.data.image_set import ImageSet
from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.evaluation.features.choice import default_extractor
from ddpm_cli.evaluation.frechet import frechet_distance
from ddpm_cli.evaluation.kernel import kernel_distance
from ddpm_cli.evaluation.likelihood import held_out_calls, held_out_loss
from ddpm_cli.evaluation.shares import gathered, share_of
from ddpm_cli.evaluation.statistics import FeatureSums, Statistics
from ddpm_cli.io.images import to_uint8
from ddpm_cli.runtime.seeds import generator
from ddpm_cli.training.build import Training
from ddpm_cli.training.measured import BY_T, ERROR, FIGURE, Evaluation
from ddpm_cli.training.previews import sampling_loop

MOST_REFERENCE = 10_000  # training images with which samples are compared


class Evaluator:
    """Evaluates a run's EMA; every rank has one, and does its share."""

    def __init__(self, training: Training):
        self.trainer, self.sampler, options, self.held_out, _ = training
        self.seed = options.seed
        self.images = self.trainer.batches.images
        self.extractor = default_extractor(self.images.labels is not None)
        self._reference: tuple[np.ndarray, Statistics] | None = None

    @property
    def batch_size(self) -> int:
        """Images at a time on each rank: as many as in training."""
        config = self.trainer.config
        return max(1, config.batch_size // (config.micro_batches * self.trainer.world.size))

    def calls(self) -> int:
        """How often `evaluate` yields."""
        world, config = self.trainer.world, self.trainer.config
        calls = 0 if self.held_out is None else held_out_calls(len(self.held_out), self.batch_size, world)
        if config.eval_images > 0:
            steps = len(self.sampler.times(self.trainer.ddpm.schedule))
            calls += (steps + 1) * len(share_of(world, config.eval_images, self.batch_size))
            if self._reference is None:
                calls += len(share_of(world, min(MOST_REFERENCE, self.trainer.batches.count), self.batch_size))
        return calls

    def evaluate(self) -> Generator[None, None, Evaluation]:
        """All figures, on every rank; yields between calls of a network, where it may be abandoned."""
        trainer = self.trainer
        ddpm = trainer.ddpm.with_model(trainer.ema.model)
        figures, errors, by_t = {}, {}, {}
        if self.held_out is not None:
            options = {"compute": trainer.compute, "seed": self.seed, "batch_size": self.batch_size}
            found = yield from held_out_loss(ddpm, self.held_out, **options, world=trainer.world)
            figures["heldout"], errors["heldout"] = found.loss, found.standard_error
            by_t = {f"{BY_T}/{first}": loss for first, loss in found.by_t.items()}
        if trainer.config.eval_images > 0:
            of_samples, their_errors = yield from self._of_samples(ddpm)
            figures, errors = figures | of_samples, errors | their_errors
        found = Evaluation(
            step=trainer.step,
            figures={f"{FIGURE}/{name}": value for name, value in figures.items()},
            errors={f"{ERROR}/{name}": value for name, value in errors.items()},
            by_t=by_t,
        )
        return trainer.world.broadcast(found)  # all ranks must agree on the best to the last bit

    def _of_samples(self, ddpm: DDPM) -> Generator[None, None, tuple[dict[str, float], dict[str, float]]]:
        """Distances of samples from training images, and the standard errors of some."""
        if self._reference is None:
            self._reference = yield from self._features_of_data()
        features = yield from self._features_of_samples(ddpm)
        world, found = self.trainer.world, ({}, {})
        if world.main:
            found = self._distances(features)
        return world.broadcast(found)

    def _distances(self, features: np.ndarray) -> tuple[dict[str, float], dict[str, float]]:
        assert self._reference is not None
        reference, statistics = self._reference
        fd, kd = f"fd_{self.extractor.name}", f"kd_{self.extractor.name}"
        if not np.isfinite(features).all():
            return {fd: math.nan, kd: math.nan}, {}
        kernel = kernel_distance(features, reference, seed=self.seed)
        figures = {fd: frechet_distance(FeatureSums.of(features).statistics(), statistics), kd: kernel.value}
        return figures, {} if kernel.standard_error is None else {kd: kernel.standard_error}

    def _features_of_data(self) -> Generator[None, None, tuple[np.ndarray, Statistics]]:
        """Features `[N, D]` of training images, unflipped, and their statistics."""
        trainer, world = self.trainer, self.trainer.world
        world.main_first(lambda: self.extractor.prepare(lambda: self.images, trainer.compute.device))
        images = self._chosen()
        parts = []
        for places in share_of(world, len(images), self.batch_size):
            indices = np.minimum(np.array(places, np.int64), len(images) - 1)
            parts.append(self._features(torch.from_numpy(np.asarray(images.pixels[indices]))))
            yield
        features = gathered(world, parts, len(images)).numpy()
        return features, FeatureSums.of(features).statistics()

    def _chosen(self) -> ImageSet:
        """The training images with which samples are compared: all, or `MOST_REFERENCE`."""
        trained = self.trainer.batches.trained
        if len(trained) > MOST_REFERENCE:
            order = torch.randperm(len(trained), generator=generator(self.seed, "reference")).numpy()
            trained = trained[np.sort(order[:MOST_REFERENCE])]
        return selected(self.images, trained)

    def _features_of_samples(self, ddpm: DDPM) -> Generator[None, None, np.ndarray]:
        """Features `[N, D]` of the EMA's samples; samples that are not finite have none."""
        trainer, count = self.trainer, self.trainer.config.eval_images
        loop = sampling_loop(trainer, ddpm, self.sampler, self.seed, count)
        parts = []
        for places in share_of(trainer.world, count, self.batch_size):
            x = torch.empty(0)
            for x in loop.states(places):  # noqa: B007 - the last is the image
                yield
            features = self._features(to_uint8(x))
            features[~torch.isfinite(x).flatten(1).all(1).cpu()] = math.nan
            parts.append(features)
            yield
        return gathered(trainer.world, parts, count).numpy()

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.extractor(images).float().cpu()
