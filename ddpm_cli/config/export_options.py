"""What the top level of configs/export.yaml holds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The top-level keys of configs/export.yaml; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    ckpt: str
    out: str
    labels: Literal["keep", "none"]
    weights: str
    ema_length: float | None
    trust: list[str]
    ckpt_sha256: str | None
    variance: dict | None
    threshold: dict


OPTIONS = "ddpm_cli.config.export_options.ExportOptions"
