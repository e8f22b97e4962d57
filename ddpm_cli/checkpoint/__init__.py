"""Checkpoints: a directory per step, saved all or nothing, verified before use, with data and no code.

checkpoints/step_00005000/
    ema.safetensors        the EMA weights and, in the header, the description: all that sampling needs
    training.safetensors   the network's own weights, optimizer moments, counters
    checkpoint.json        the description: format, step, configuration, image shape, versions
    manifest.json          size and SHA-256 of the three, and its own; written last

averages/step_00005000.safetensors, beside checkpoints/: see `ema_snapshots`
"""

from ddpm_cli.checkpoint.ema_snapshots import (
    Snapshot,
    load_snapshot,
    remove_snapshots,
    save_snapshot,
    snapshots_of,
    verify_snapshot,
)
from ddpm_cli.checkpoint.find import find, newest, newest_whole
from ddpm_cli.checkpoint.metadata import (
    DESCRIPTION_FILE,
    EMA_FILE,
    FILES,
    MANIFEST_FILE,
    TRAINING_FILE,
    CheckpointError,
    Metadata,
)
from ddpm_cli.checkpoint.read import load_ema, load_training
from ddpm_cli.checkpoint.verify import Verified, verify
from ddpm_cli.checkpoint.write import remove_old, save, set_aside, size, versions

__all__ = [
    "DESCRIPTION_FILE",
    "EMA_FILE",
    "FILES",
    "MANIFEST_FILE",
    "TRAINING_FILE",
    "CheckpointError",
    "Metadata",
    "Snapshot",
    "Verified",
    "find",
    "load_ema",
    "load_snapshot",
    "load_training",
    "newest",
    "newest_whole",
    "remove_old",
    "remove_snapshots",
    "save",
    "save_snapshot",
    "set_aside",
    "size",
    "snapshots_of",
    "verify",
    "verify_snapshot",
    "versions",
]
