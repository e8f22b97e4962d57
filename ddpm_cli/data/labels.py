"""Which classes a data set has, and which of them each image is in."""

from collections.abc import Iterable, Sequence

import numpy as np

from ddpm_cli.data.scan import SUFFIXES
from ddpm_cli.io.text import printable

SHOWN_CLASSES = 10  # named in a message: there may be thousands


def check_num_classes(num_classes: int | None, name: str, class_names: Sequence[str]) -> None:
    """Raise ValueError unless `num_classes` is the number of `class_names` of the data set, or None: no labels."""
    if num_classes is not None and not _is(num_classes, len(class_names)):
        raise ValueError(f"num_classes is {num_classes}, but {name} has {len(class_names)} classes")


def class_folders(names: Iterable[str], root: str, num_classes: int) -> tuple[str, ...]:
    """The folders directly in `root` that hold the images `names` (paths below it, with /), sorted: class 0, 1, ...

    Images that are to be left out must be among them, so that the classes keep their numbers. A name that is no
    image's is that of a folder that cannot be searched: it counts too.

    Raises ValueError for images that are in no such folder, and unless there are `num_classes` folders.
    """
    names = list(names)
    stray = sorted(name for name in names if "/" not in name and name.lower().endswith(SUFFIXES))
    if stray:
        raise ValueError(
            f"num_classes is {num_classes}, but {len(stray)} of the images in {printable(root)} are in no class "
            f"folder, e.g. {printable(stray[0])}: move them into one folder per class, or set num_classes to null"
        )
    folders = tuple(sorted({_class_folder(name) for name in names}))
    if not _is(num_classes, len(folders)):
        shown = [printable(folder) for folder in folders[:SHOWN_CLASSES]]
        more = ["..."] if len(folders) > SHOWN_CLASSES else []
        raise ValueError(
            f"num_classes is {num_classes}, but {printable(root)} has {len(folders)} class "
            f"{'folder' if len(folders) == 1 else 'folders'}: {', '.join(shown + more)}"
        )
    return folders


def folder_labels(names: Iterable[str], folders: Sequence[str]) -> np.ndarray:
    """int64 `[N]`: in which of `folders` each of the N images `names` is, directly or further down."""
    label_of = {folder: label for label, folder in enumerate(folders)}
    return np.array([label_of[_class_folder(name)] for name in names], np.int64)


def _class_folder(name: str) -> str:
    return name.partition("/")[0]


def _is(num_classes: int, number: int) -> bool:
    return num_classes == number and not isinstance(num_classes, bool)
