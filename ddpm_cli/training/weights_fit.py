"""Whether trained weights fit a network: the tensors that do not, and the options in which the two networks differ."""

import inspect
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ddpm_cli.config.schema import NODE_KEYS
from ddpm_cli.config.signatures import resolve
from ddpm_cli.io.command_line import hydra_text, word

_ATTENTION, _SIZE = "attention_resolutions", "image_size"
_NOT_OF_WEIGHTS = ("dropout", _SIZE)  # options that do not affect the weights


class Fit(NamedTuple):
    """How trained weights fit a network."""

    fitting: dict[str, Tensor]  # the weights that do
    misfits: list[str]  # one line for each tensor that does not
    options: list[str]  # one line for each option that differs, also if every tensor fits
    cure: str  # the overrides that give the network of the weights; empty: there are none


def fit(
    network: Mapping[str, Any], own: Mapping[str, Tensor], source: Mapping[str, Any], theirs: Mapping[str, Tensor]
) -> Fit:
    """Compare a network with trained weights.

    Args:
        network: the node from which the network was built.
        own: its tensors, by name.
        source: the node that describes the network of the weights.
        theirs: the weights.
    """
    misfits, fitting = [], {}
    for name in dict.fromkeys([*own, *theirs]):
        there, here = theirs.get(name), own.get(name)
        if there is not None and here is not None and there.shape == here.shape:
            fitting[name] = there
        else:
            misfits.append(f"{name} was {_shape(there)}, is {_shape(here)} here")
    differing = _differing(source, network)
    options = [f"model.{key} was {_text(there)}, is {_text(here)} here" for key, (there, here) in differing.items()]
    return Fit(fitting, misfits, options, _cure({key: there for key, (there, _) in differing.items()}))


def _shape(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else str(list(tensor.shape))


def _differing(source: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """By name, each option that differs between the network of the weights and this one, with both values."""
    if source["_target_"] != network["_target_"]:
        return {"_target_": (source["_target_"], network["_target_"])}
    there, here = _whole(source), _whole(network)
    if _ATTENTION in there and _SIZE in there and _SIZE in here:
        there[_ATTENTION] = _attention(there, here[_SIZE])
        here[_ATTENTION] = _attention(here, here[_SIZE])
    keys = [key for key in dict.fromkeys([*there, *here]) if key not in (*NODE_KEYS, *_NOT_OF_WEIGHTS)]
    return {key: (there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def _whole(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node with the defaults of options that it lacks, as in earlier versions."""
    parameters = inspect.signature(resolve(node["_target_"])).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in (defaults | dict(node)).items()}


def _attention(node: Mapping[str, Any], image_size: Any) -> list[int]:
    """The levels with self-attention, named as for images of another size, the finest first."""
    own, other = (min(size) if isinstance(size, list) else size for size in (node[_SIZE], image_size))
    return sorted((resolution * other // own for resolution in node[_ATTENTION]), reverse=True)


def _cure(theirs: Mapping[str, Any]) -> str:
    """The overrides that give the options of the weights' network."""
    said = []
    for key, value in theirs.items():
        match key:
            case "_target_" | "in_channels":  # another program's network, and other images
                return ""
            case "num_classes":
                said.append(f"data.num_classes={_text(value)}")
            case "learn_variance":
                said.append("variance=learned_range loss=hybrid" if value else "variance=fixed_small loss=simple")
            case _:
                said.append(word(f"model.{key}={_text(value)}"))
    return " ".join(said)


def _text(value: Any) -> str:
    """A value as on a command line."""
    return hydra_text(value) if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
