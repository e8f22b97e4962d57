"""The figures that a run is judged by while it trains: their names, and what each is measured on."""

from collections.abc import Mapping
from typing import Any, Literal

from ddpm_cli.config.errors import ConfigError

Name = Literal["heldout", "fd", "kd"]  # of each, less is better

_MADE_BY = {
    "heldout": ("the loss on held-out images", "data.holdout"),
    "fd": ("the Frechet distance of samples", "trainer.eval_images"),
    "kd": ("the kernel distance of samples", "trainer.eval_images"),
}


def check_figures(config: Mapping[str, Any]) -> None:
    """Check that evaluations while training have something to measure, and measure what other options need.

    Args:
        config: a run's whole configuration.

    Raises:
        ConfigError: naming the key and what is missing.
    """
    trainer = config["trainer"]
    made = {"data.holdout": config["data"].get("holdout", 0), "trainer.eval_images": trainer.get("eval_images", 0)}
    evaluated = trainer.get("eval_every", 0) > 0
    if evaluated and not any(count > 0 for count in made.values()):
        raise ConfigError(
            "trainer.eval_every: there is nothing to measure; add data.holdout=N for the loss on N held-out images, or "
            "trainer.eval_images=N for fd and kd of N samples"
        )
    for key, name in (("objective", config.get("objective")), ("trainer.keep_best", trainer.get("keep_best"))):
        if name is None:
            continue
        what, source = _MADE_BY[name]
        if not evaluated:
            raise ConfigError(f"{key}: {name} is measured while training; add trainer.eval_every=STEPS")
        if made[source] == 0:
            raise ConfigError(f"{key}: {name} is {what}; add {source}=N")
