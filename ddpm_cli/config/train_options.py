"""What the top level of configs/train.yaml holds."""

from dataclasses import dataclass, field

from ddpm_cli.config.figures import Name


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The top-level keys of configs/train.yaml; the groups are nodes as `ddpm_cli.config.schema` describes them."""

    name: str | None
    seed: int
    output_dir: str
    resume: str | None
    trust: list[str]
    fork: str | None = None  # not in checkpoints of before there was such a key
    init: dict | None = None  # the same; see `init_options`
    objective: Name | None = None  # the same
    schedule: dict
    model: dict
    prediction: dict
    variance: dict
    weighting: dict
    loss: dict
    timestep_sampler: dict
    sampler: dict
    optimizer: dict
    ema: dict
    trainer: dict
    data: dict
    logger: dict[str, dict] = field(default_factory=dict)  # by name; see `compare.LOGGER`


OPTIONS = "ddpm_cli.config.train_options.TrainOptions"
