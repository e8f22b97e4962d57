"""What the top levels of configs/sample.yaml and configs/eval.yaml have in common: what images are drawn with."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """The keys of either command; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    batch_size: int
    seed: int
    weights: str
    ema_length: float | None
    device: str
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    compile: Literal["auto"] | bool
    out: str | None
    trust: list[str]
    ckpt_sha256: str | None
    sampler: dict
    variance: dict | None
    guidance: dict
    threshold: dict
