"""The trained weights that `init=` names: a checkpoint of ours, or another program's network.

Heavy modules are imported inside the functions, so that a mistyped key is reported without importing torch.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ddpm_cli.config.compare import all_differences
from ddpm_cli.config.errors import ConfigError, naming
from ddpm_cli.config.init_options import InitOptions
from ddpm_cli.config.invocation import Invocation
from ddpm_cli.config.train_options import TrainOptions
from ddpm_cli.io import durable, run_dir
from ddpm_cli.io.run_identity import Identity, identity_of
from ddpm_cli.sampling.model import agreed
from ddpm_cli.training.resume import trusted

if TYPE_CHECKING:
    from torch import Tensor

    from ddpm_cli.checkpoint import Metadata
    from ddpm_cli.distributed.process_group import World

MEANING = ("prediction", "schedule", "variance")  # groups that give a network's output its meaning


class Source(NamedTuple):
    """Trained weights, read and checked."""

    path: Path  # absolute: of a checkpoint, or of another program's files
    weights: str | None  # which of a checkpoint's weights; None: there are no others
    tensors: "dict[str, Tensor]"
    config: dict  # of the network and the meaning of its output, by group
    classes: tuple[str, ...] = ()  # names of its labels, from 0 up
    metadata: "Metadata | None" = None  # of a checkpoint
    remarks: tuple[str, ...] = ()  # on what was assumed of another program's network

    @property
    def run(self) -> Path | None:
        """The directory of the run that contains the checkpoint."""
        return self.path.parent.parent if self.path.parent.name == run_dir.CHECKPOINTS else None

    def identity(self, options: TrainOptions) -> Identity:
        """The identity of a new run that starts from these weights."""
        with naming("init"):
            own = None if self.run is None else identity_of(self.run)
        said = [group for group in MEANING if group in self.config]
        there, here = ({group: config[group] for group in said} for config in (self.config, vars(options)))
        return Identity(
            name=options.name,
            begun_in=os.getcwd(),
            init_from=str(self.path),
            init_weights=self.weights,
            init_of=None if own is None else own.id,
            differs=tuple(all_differences(there, here)),
        )


def read_source(init: InitOptions, invocation: Invocation, world: "World") -> Source:
    """The weights that `init` names: found by rank 0, which verifies a checkpoint, and read by all.

    Raises:
        ConfigError: if there are none, or they are damaged, or ask for something that is not on the list.
    """
    assert init.path is not None
    path = Path(os.path.abspath(init.path))
    if world.on_main(lambda: _is_foreign(path)):
        return agreed(world, lambda: _foreign(path, init))
    return _of_checkpoint(path, init, trusted({}, invocation), world)


def _of_checkpoint(path: Path, init: InitOptions, trust: list[str], world: "World") -> Source:
    from ddpm_cli.checkpoint.find import find
    from ddpm_cli.checkpoint.pretrained import rebuild, select

    with naming("init"):
        found = world.on_main(lambda: find(path, program="ddpm-train", key="init"))
        selection = world.on_main(lambda: select(found, weights=init.weights, trust=trust, key="init.weights"))
        if not world.main:
            durable.wait_for(*selection.files)
        pretrained = rebuild(selection, trust=trust)
    metadata, tensors = selection.checkpoint.metadata, pretrained.ddpm.model.state_dict()
    return Source(found, init.weights, tensors, metadata.config, metadata.classes, metadata)


def _is_foreign(path: Path) -> bool:
    """Whether it is not a checkpoint of ours, but looks like another program's network."""
    from ddpm_cli.checkpoint import CheckpointError
    from ddpm_cli.checkpoint.files import metadata_in
    from ddpm_cli.conversion.diffusers_files import is_directory_of_diffusers
    from ddpm_cli.conversion.tensor_file import PICKLED, SAFETENSORS

    if os.path.isdir(path):  # also False for impossible paths, such as a name of 300 letters
        return is_directory_of_diffusers(path) and not (path / run_dir.CHECKPOINTS).is_dir()
    if os.path.isfile(path) and path.suffix == SAFETENSORS:
        try:
            metadata_in(path)
        except CheckpointError:
            return True
    return os.path.isfile(path) and path.suffix in PICKLED


def _foreign(path: Path, init: InitOptions) -> Source:
    from ddpm_cli.conversion.layers import UNET
    from ddpm_cli.conversion.read import read_source

    if init.weights != InitOptions.weights:
        raise ConfigError(f"init.weights: has no effect, {path} has one set of weights")
    with naming("init"):
        found = read_source(path)
    config = {"model": {"_target_": UNET} | found.unet} | found.groups
    return Source(path, None, found.tensors, config, remarks=found.remarks)
