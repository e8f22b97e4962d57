"""What the top level of configs/import.yaml holds."""

from dataclasses import dataclass

from ddpm_cli.config.errors import ConfigError


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

    def __post_init__(self) -> None:
        size = self.image_size
        sides = [size, size] if isinstance(size, int) else size
        if sides is not None and not (len(sides) == 2 and all(side >= 1 for side in sides)):
            raise ConfigError(f"image_size: must be at least 1, or [height, width] of at least 1 each, got {size}")


OPTIONS = "ddpm_cli.config.import_options.ImportOptions"
