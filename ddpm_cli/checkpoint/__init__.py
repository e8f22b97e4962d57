"""Checkpoints: a directory per step, saved all or nothing, checked before it is used, holding data and no code.

checkpoints/step_00005000/
    ema.safetensors        the EMA weights and, in the header, the description: all that sampling needs
    training.safetensors   the network's own weights, optimizer moments, counters
    checkpoint.json        the description: format, step, configuration, image shape, versions
    manifest.json          size and SHA-256 of the three, and its own; written last

averages/step_00005000.safetensors, beside checkpoints/: see `snapshots`
"""

from ddpm_cli.checkpoint.ema_snapshots import Snapshot, load_snapshot, remove_snapshots, save_snapshot, snapshots_of
from ddpm_cli.checkpoint.find import find, fingerprint, newest, newest_whole, pinned_file, verify
from ddpm_cli.checkpoint.metadata import (
    DESCRIPTION_FILE,
    EMA_FILE,
    FILES,
    MANIFEST_FILE,
    TRAINING_FILE,
    CheckpointError,
    Metadata,
)
from ddpm_cli.checkpoint.read import Check, load_ema, load_training
from ddpm_cli.checkpoint.write import remove_old, save, set_aside, size, versions

__all__ = [
    "DESCRIPTION_FILE",
    "EMA_FILE",
    "FILES",
    "MANIFEST_FILE",
    "TRAINING_FILE",
    "Check",
    "CheckpointError",
    "Metadata",
    "Snapshot",
    "find",
    "fingerprint",
    "load_ema",
    "load_snapshot",
    "load_training",
    "newest",
    "newest_whole",
    "pinned_file",
    "remove_old",
    "remove_snapshots",
    "save",
    "save_snapshot",
    "set_aside",
    "size",
    "snapshots_of",
    "verify",
    "versions",
]
