"""`.hydra/` in the directory of a run, where Hydra's users look for how its configuration was composed.

Hydra would write it before a command line has been checked, into a directory that is not the run's. So it is written by
the one who makes the directory, out of what is kept here.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ddpm_cli.cli.arguments import OUTPUT_SUBDIR
from ddpm_cli.io.run_dir import HYDRA


class HydraRecord:
    """What Hydra composed for one run.

    Args:
        config: the configuration of the run, its references not followed.
    """

    def __init__(self, config: DictConfig):
        self._config = config
        self._hydra: Any = copy.deepcopy(HydraConfig.instance().cfg)

    def __call__(self, directory: Path, config: dict | None = None) -> dict[str, str]:
        """The files of `.hydra/` by name, as Hydra writes them, for a run in `directory`.

        Args:
            config: of a run whose configuration is not the one that was composed, for it goes back to another run's.
        """
        hydra = self._hydra.hydra
        with read_write(hydra), open_dict(hydra):
            hydra.runtime.output_dir = os.path.abspath(directory)
            hydra.output_subdir = HYDRA
            if hydra.run.dir == "":  # it is not Hydra that has made it
                hydra.run.dir = str(directory)
        return {
            "config.yaml": OmegaConf.to_yaml(self._config if config is None else OmegaConf.create(config)),
            "hydra.yaml": OmegaConf.to_yaml(self._hydra),
            "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
        }


def is_wanted(overrides: Sequence[str]) -> bool:
    """Whether `.hydra/` is written, by Hydra's own overrides.

    What `other_primary` adds to a command line begins with ++, and is not the user's word.
    """
    return not any(text.lower() == f"{OUTPUT_SUBDIR}=null" for text in overrides)
