"""The figures that a run is judged by while it trains: what they are called, and what makes each."""

from collections.abc import Mapping
from typing import Any, Literal

from ddpm_cli.config.errors import ConfigError

Name = Literal["heldout", "fd", "kd"]  # of each, less is better

_MADE_BY = {
    "heldout": ("the loss on images that are kept from training", "data.holdout"),
    "fd": ("the Frechet distance of samples", "trainer.eval_images"),
    "kd": ("the kernel distance of samples", "trainer.eval_images"),
}


def check_figures(config: Mapping[str, Any]) -> None:
    """Check that an evaluation while training has something to measure, and all that is asked for of it.

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
            "trainer.eval_every: there is nothing to measure: data.holdout=N keeps images from training for a loss on "
            "these, trainer.eval_images=N draws samples for fd and kd"
        )
    for key, name in (("objective", config.get("objective")), ("trainer.keep_best", trainer.get("keep_best"))):
        if name is None:
            continue
        what, source = _MADE_BY[name]
        if not evaluated:
            raise ConfigError(f"{key}: {name} is measured while training; add trainer.eval_every=STEPS")
        if made[source] == 0:
            raise ConfigError(f"{key}: {name} is {what}; add {source}=N")
