"""The learning rate as a function of the step alone, so that it needs no state in a checkpoint."""

import math


def factor(step: int, *, steps: int, warmup_steps: int, decay: str) -> float:
    """The factor of the peak learning rate at optimizer step `step` in `{0 .. steps-1}`.

    It rises linearly over the first `warmup_steps` steps and reaches 1 at the last of them; then it stays 1, or falls
    to 0 at `steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if decay == "linear" else 1.0
