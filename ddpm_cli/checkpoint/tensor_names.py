"""What the tensors of a training state are called: a prefix that says whose they are, and their name there.

model.<parameter>                     the network's own weights
optimizer.<parameter>.<moment>        what the optimizer keeps of each parameter
ema.<decay>.<parameter>               the exponential averages but the main one, which has a file of its own
posthoc.<length>.<parameter>          the power-function averages
timesteps.<name>                      what has been learned of the losses at each t
unlogged.<name>                       of the steps since the last entry of the log, one row each
counter.<name>, scaler.<name>         single numbers
"""

from collections.abc import Mapping
from typing import TypeVar

from ddpm_cli.ema.posthoc import EMA, POSTHOC

T = TypeVar("T")

MODEL = "model."
OPTIMIZER = "optimizer."
AVERAGES = (EMA, POSTHOC)
TIMESTEPS = "timesteps."
UNLOGGED = "unlogged."
COUNTER = "counter."
SCALER = "scaler."


def below(prefix: str, named: Mapping[str, T]) -> dict[str, T]:
    """Those whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
