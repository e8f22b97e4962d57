"""What drew some images, as text: config.yaml beside them, and in each of their PNGs.

It is a configuration of `ddpm-sample` that draws them again. Nothing in it is of a clock, or of how often the run was
stopped: what a run leaves is the same bytes, however it came about.
"""

import platform
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ddpm_cli import __version__
from ddpm_cli.config.sample_options import OF_MODES, SampleOptions
from ddpm_cli.config.sampler_spacing import is_optimized
from ddpm_cli.io.run_dir import CONFIG_FILE
from ddpm_cli.io.text import printable

if TYPE_CHECKING:
    from ddpm_cli.checkpoint import Verified
    from ddpm_cli.sampling.loop import SamplingLoop

KEYWORD = "ddpm-cli"  # in PNGs
MOST_TEXT = 2**15  # characters in a PNG; ours has 2,000, but for long lists of timesteps or classes


def provenance(options: SampleOptions, checkpoint: "Verified", weights: object, loop: "SamplingLoop") -> str:
    """The configuration that draws the images of these options from that very checkpoint, in YAML.

    Args:
        weights: what is drawn with, as the identity of the images has it.
    """
    import torch

    # An average made of snapshots is of more than the checkpoint that its SHA-256 would be of.
    known = None if options.ema_length is not None else checkpoint.sha256
    really: dict[str, Any] = {"ckpt": str(checkpoint.path), "ckpt_sha256": known, "seed": options.seed, "out": None}
    chosen = really | asdict(options) | really
    if is_optimized(options.sampler):  # the timesteps that were chosen are named
        chosen["sampler"] = chosen["sampler"] | {"spacing": "linspace"}
    for group, keys in (("mode", OF_MODES), ("sampler", ("variance",))):  # as configs/ refer to the top level
        chosen[group] = {key: f"${{{key}}}" if key in keys else value for key, value in chosen[group].items()}
    versions = f"ddpm-cli {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    guided = [] if loop.guide is None else [f"# guided away from {_ascii(loop.guide.said)}"]
    lines = [
        "# What ddpm-sample drew with. The same images again:",
        f"# ddpm-sample --config-path DIRECTORY_OF_THIS_FILE --config-name {CONFIG_FILE.removesuffix('.yaml')}",
        f"# {versions}; on {loop.compute.device.type}, {loop.compute.precision}",
        f"# checkpoint: {weights}",
        *guided,
    ]
    return "\n".join([*lines, yaml.safe_dump(_from_home(chosen), sort_keys=False)])


def about(text: str, image: str = "") -> dict[str, str]:
    """What a PNG says beside its pixels, by keyword.

    Args:
        text: as of `provenance`.
        image: which of the images it is, if it is one.
    """
    said = f"# {_ascii(image)}\n{text}" if image else text
    if len(said) > MOST_TEXT:
        lines = said[:MOST_TEXT].splitlines()[:-1]
        said = "\n".join([*lines, f"# and more, in {CONFIG_FILE}", ""])
    return {"Software": f"ddpm-cli {__version__}", KEYWORD: said}


def _from_home(node: Any) -> Any:
    """With `~` for the user's home directory, as options may have it: pictures are shown to others."""
    if isinstance(node, dict):
        return {key: _from_home(value) for key, value in node.items()}
    if not isinstance(node, str):
        return node
    home = Path.home()
    return f"~/{Path(node).relative_to(home)}" if node.startswith(f"{home}/") and home != Path("/") else node


def _ascii(text: str) -> str:
    return printable(text).encode("ascii", "backslashreplace").decode()
