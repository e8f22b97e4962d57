"""What the top level of configs/import.yaml holds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The top-level keys of configs/import.yaml; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    source: str
    out: str
    image_size: int | list[int] | None
    download: bool
    preset: dict | None
    schedule: dict | None
    prediction: dict | None
    variance: dict | None
    threshold: dict | None


OPTIONS = "ddpm_cli.config.import_options.ImportOptions"
