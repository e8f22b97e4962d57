"""Recognises output of our own commands by the files in its directory: nobody means to train on it.

    a run      run.json (of earlier versions: config.yaml and checkpoints/), and beside it previews/, samples/, eval/
    samples    samples.json, or .unfinished/ while they are drawn, and beside it samples.png, images/
    a sweep    contact_sheet.png, and a folder with result.json for each of its runs

By name, and only beside such a mark: pictures of somebody's own that lie in the same directory are not ours.
"""

import os
from collections.abc import Collection

from ddpm_cli.io import run_dir

UNFINISHED_FOLDER = ".unfinished"
FINISHED_FILE = "samples.json"
GRID_FILE = "samples.png"
IMAGES_DIRECTORY = "images"
NPZ_FILE = "samples.npz"
STRIP_FILE = "steps.png"
GIF_FILE = "steps.gif"
SAMPLED = (GRID_FILE, IMAGES_DIRECTORY, NPZ_FILE, STRIP_FILE, GIF_FILE)
SHEET_FILE = "contact_sheet.png"
RESULT_FILE = "result.json"

_OF_A_RUN = (
    *(run_dir.PREVIEWS, run_dir.SAMPLES, run_dir.EVAL, run_dir.TENSORBOARD, run_dir.CHECKPOINTS, run_dir.AVERAGES),
    run_dir.LOGGERS,
    run_dir.DATA_FILE,
)


def own_output(directory: str, names: Collection[str]) -> frozenset[str]:
    """Which of the entries `names` of a directory are images that our commands wrote, or folders of them."""
    found = set()
    if run_dir.RUN_FILE in names or {run_dir.CONFIG_FILE, run_dir.CHECKPOINTS} <= set(names):
        found.update(_OF_A_RUN)
    if FINISHED_FILE in names or UNFINISHED_FOLDER in names:
        found.update(SAMPLED)
    if SHEET_FILE in names and any(os.path.exists(os.path.join(directory, name, RESULT_FILE)) for name in names):
        found.add(SHEET_FILE)
    return frozenset(found.intersection(names))
