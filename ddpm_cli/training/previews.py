"""Samples of a run's EMA while it trains, from noise that is the same at every step."""

from collections.abc import Generator

from torch import Tensor

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.samplers import Sampler
from ddpm_cli.io.images import to_uint8
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import Generate, SampleContext
from ddpm_cli.training.trainer import Trainer


def preview(trainer: Trainer, sampler: Sampler, seed: int) -> Generator[None, None, Tensor]:
    """uint8 samples `[N, C, H, W]`; yields after every step of the way there.

    Every rank draws its share, so that none waits for another one's.
    """
    world, wanted = trainer.world, trainer.config.preview_images
    share = -(-wanted // world.size)  # some ranks may draw images that nobody asked for
    ddpm = trainer.ddpm.with_model(trainer.ema.model)
    loop, x = sampling_loop(trainer, ddpm, sampler, seed, share * world.size), None
    for x in loop.states(range(world.rank * share, (world.rank + 1) * share)):  # noqa: B007 - the last is the image
        yield
    assert x is not None
    return world.gather(to_uint8(x))[:wanted]


def sampling_loop(trainer: Trainer, ddpm: DDPM, sampler: Sampler, seed: int, images: int) -> SamplingLoop:
    """The loop that samples previews; if there are labels, the images get them in turn."""
    context = SampleContext(
        schedule=ddpm.schedule,
        sampler=sampler,
        image_shape=trainer.batches.images.shape,
        n=images,
        classes=0,
        seed=seed,
        device=trainer.compute.device,
    )
    plan = Generate().plan(context)
    if ddpm.num_classes is not None:
        plan = plan._replace(rows=images, per_row=1, labels=[i % ddpm.num_classes for i in range(images)])
    return SamplingLoop(ddpm, plan, trainer.compute)
