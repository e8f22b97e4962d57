"""Options that every choice of a group has, also a user's own: the program handles them, not their target.

Their defaults and comments stand in configs/train.yaml.
"""

import ast
from typing import Any, NamedTuple

from ddpm_cli.config.signatures import Parameter


class Common(NamedTuple):
    """The options of a node of `data` that are for the program."""

    holdout: int = 0


DATA_PLACE = "ddpm_cli.config.eval_options.DataPlace"  # the node called `data` that is no data set
_OF_GROUPS = {"data": {"holdout": Parameter("holdout", ast.Name("int"), required=False, positional=False)}}


def common_options(group: str, target: str | None = None) -> dict[str, Parameter]:
    """The common options of a group, by name; if `target` is given, of a node of that name with this target."""
    return {} if target == DATA_PLACE else _OF_GROUPS.get(group, {})


def without_common(data: dict[str, Any]) -> tuple[dict[str, Any], Common]:
    """A node of `data` without its common options, for its target, and these options.

    Raises:
        ValueError: for a value of another type, or out of range.
    """
    common = Common(**{key: data[key] for key in common_options("data") if key in data})
    if not isinstance(common.holdout, int) or isinstance(common.holdout, bool):  # a target that takes anything
        raise ValueError(f"holdout must be a whole number, got {common.holdout!r}")
    if common.holdout < 0:
        raise ValueError(f"holdout must not be negative, got {common.holdout}")
    return {key: value for key, value in data.items() if key not in common_options("data")}, common
