"""Weights & Biases: online, or into files that `wandb sync` sends later."""

import io
import os
from collections.abc import Sequence
from typing import Any, Literal

from PIL import Image

from ddpm_cli.config.extras import require
from ddpm_cli.io.command_line import word
from ddpm_cli.io.run_dir import LOGGERS
from ddpm_cli.loggers.logger import Begun, Ending, RunInfo
from ddpm_cli.runtime.exit_codes import FAILED, RESUME_LATER

STEP = "step"  # what every curve is drawn over


class WandB:
    """A run of Weights & Biases, which a resumed run goes on with. Its files lie in RUN_DIR/loggers/wandb.

    The steps are figures of their own: the library drops what is logged for a step that is not its newest.

    Args:
        project: None: WANDB_PROJECT, or ddpm-cli.
        entity: a user or a team; None: the library's default.
        group: None: the name of the sweep, for a run of one.
        tags: of the run.
        mode: None: WANDB_MODE, or online.

    Raises:
        ValueError: if the library is not installed.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: Literal["online", "offline"] | None = None,
    ):
        require("wandb", "wandb")
        self.project = project or os.environ.get("WANDB_PROJECT") or "ddpm-cli"
        self.entity = entity
        self.group = group
        self.tags = tags
        self.mode = mode
        self._run: Any = None

    @property
    def place(self) -> str:
        return f"{self.entity} {self.project}"

    def begin(self, run: RunInfo) -> Begun:
        import wandb

        mode: Any = self.mode or os.environ.get("WANDB_MODE") or "online"
        online = mode not in ("offline", "dryrun")
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            group=self.group or run.group,
            tags=list(self.tags),
            mode=mode,
            id=run.id,
            resume="allow" if online else None,
            name=run.name,
            dir=str(run.directory / LOGGERS),
            config=run.config,
            settings=wandb.Settings(**_settings(wandb.Settings, run)),
        )
        self._run.define_metric("*", step_metric=STEP)
        later = f"to send it: wandb sync {word(str(run.directory / LOGGERS))}/wandb/offline-run-*"
        return Begun(run.id, (self._run.url or mode) if online else later)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({STEP: step} | values)

    def image(self, step: int, name: str, png: bytes) -> None:
        import wandb

        self._run.log({STEP: step, name: wandb.Image(Image.open(io.BytesIO(png)))})

    def end(self, ending: Ending) -> None:
        self._run.summary.update(ending.summary)
        if ending.state == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code={"finished": 0, "stopped": RESUME_LATER, "failed": FAILED}[ending.state])


def _settings(known: Any, run: RunInfo) -> dict[str, Any]:
    """What is set of the library, as far as this version of it has such a setting.

    No code, and nothing of the repository that somebody happens to stand in: what has not been committed there may be
    anything.
    """
    wanted = {
        "console": "off",
        "silent": True,
        "disable_code": True,
        "disable_git": True,
        "symlink": False,  # of the newest run: there is one
        "allow_val_change": True,  # a resumed run may have other steps, intervals, places
        "x_stats_pid": run.pid,
    }
    return {name: value for name, value in wanted.items() if name in known.model_fields}
