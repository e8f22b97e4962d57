"""What saving costs: seconds of a save against the steps between two of them, at the default interval."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from ddpm_cli.config.shipped import configs_directory
from torture.trials import Row, Setting, fork

MOST = 0.02  # of the time
RECIPES = {"digits": ["data=digits"], "cifar10_ddpm": ["experiment=cifar10_ddpm"]}


@dataclass(frozen=True)
class Cost:
    """Of one recipe, on this machine."""

    megabytes: float
    save_seconds: float  # median
    step_seconds: float | None  # median; None: too slow to wait for here
    interval: int  # steps

    def __str__(self) -> str:
        text = f"{self.megabytes:,.1f} MB in {self.save_seconds:.3f} s every {self.interval:,} steps"
        if self.step_seconds is not None:
            return f"{text} of {1000 * self.step_seconds:.0f} ms: {self.share:.2%}"
        return f"{text}: 2 % of the time only where a step takes less than {self.fastest_step:.1f} ms"

    @property
    def share(self) -> float:
        assert self.step_seconds is not None
        return self.save_seconds / (self.save_seconds + self.interval * self.step_seconds)

    @property
    def fastest_step(self) -> float:
        """Milliseconds of a step at which saving takes MOST of the time."""
        return 1000 * self.save_seconds * (1 - MOST) / (MOST * self.interval)


def cost_of_saving(setting: Setting) -> Row:
    """At most 2 % of the time at the default interval; for DDPM's CIFAR-10 network, how fast a step may be for that."""
    digits = _measure("digits", setting.place, saves=5, steps=15)
    parts, failures = [f"digits recipe: {digits}"], []
    if digits.share > MOST:
        failures.append(f"{digits.share:.2%} of the time goes into saving")
    if setting.share == 1.0:
        parts.append(f"DDPM's CIFAR-10 network: {_measure('cifar10_ddpm', setting.place, saves=3, steps=0)}")
    return Row("cost of saving", "; ".join(parts), failures)


def _measure(recipe: str, place: Path, *, saves: int, steps: int) -> Cost:
    kept = place / f"{recipe}.json"
    process = fork(lambda: kept.write_text(json.dumps(_seconds(recipe, place / recipe, saves, steps))), place / recipe)
    if process.wait(timeout=600) != 0:
        raise RuntimeError(process.said())
    found = json.loads(kept.read_text())
    return Cost(found["megabytes"], found["save"], found["step"], found["interval"])


def _seconds(recipe: str, place: Path, saves: int, steps: int) -> dict:
    import numpy as np
    import torch

    from ddpm_cli import checkpoint
    from ddpm_cli.config.instantiate import instantiate
    from ddpm_cli.data.image_set import ImageSet
    from ddpm_cli.data.loader import BatchLoader
    from ddpm_cli.diffusion.ddpm import DDPM
    from ddpm_cli.ema.ema import EMA
    from ddpm_cli.runtime.device import choose_compute
    from ddpm_cli.training.train_state import capture
    from ddpm_cli.training.trainer import Trainer

    torch.set_num_threads(2)
    config = _compose(recipe)
    ddpm = DDPM(instantiate(config["model"], "model"), instantiate(config["schedule"], "schedule"))
    compute = choose_compute("cpu")
    compute.place(ddpm)
    settings = instantiate(config["trainer"], "trainer")
    shape = (config["model"]["in_channels"], config["model"]["image_size"], config["model"]["image_size"])
    pixels = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    batches = BatchLoader(ImageSet(pixels, "noise", flip="none"), settings.batch_size, seed=0)
    optimizer = instantiate(config["optimizer"], "optimizer")(ddpm.model.parameters())
    trainer = Trainer(ddpm, batches, optimizer=optimizer, ema=EMA(ddpm.model), config=settings, compute=compute, seed=0)
    if steps == 0:  # the optimizer's state is there after one step, however small
        for parameter in ddpm.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    took = []
    for _ in range(steps):
        began = time.perf_counter()
        trainer.train_step(batches.batch(trainer.step))
        took.append(time.perf_counter() - began)
    ema, training = trainer.ema.model.state_dict(), capture(trainer)
    saved = []
    for step in range(saves):
        description = checkpoint.Metadata(step=step, image_shape=shape, images=64, config=config, versions={})
        began = time.perf_counter()
        checkpoint.save(place, ema=ema, training=training, description=description)
        checkpoint.remove_old(place, keep_last=1)
        saved.append(time.perf_counter() - began)
    return {
        "megabytes": checkpoint.size(ema, training) / 1e6,
        "save": statistics.median(saved),
        "step": statistics.median(took[3:]) if took else None,
        "interval": settings.checkpoint_every,
    }


def _compose(recipe: str) -> dict:
    import hydra
    from omegaconf import OmegaConf

    from ddpm_cli.cli.launch import register_resolvers

    register_resolvers()
    with hydra.initialize_config_dir(str(configs_directory()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", RECIPES[recipe]), resolve=True)
    assert isinstance(config, dict)
    return config
