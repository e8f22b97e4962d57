"""The classes of a data set, and the class of each image."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from ddpm_cli.io.text import printable

SHOWN_CLASSES = 10  # in a message: there may be thousands


def check_num_classes(num_classes: int | None, name: str, class_names: Sequence[str]) -> None:
    """Raise ValueError unless `num_classes` is the number of `class_names` of the data set, or None: no labels."""
    if num_classes is not None and not _is(num_classes, len(class_names)):
        raise ValueError(f"num_classes is {num_classes}, but {name} has {len(class_names)} classes")


def class_folders(images: Iterable[str], bad: Iterable[str], root: str, num_classes: int) -> tuple[str, ...]:
    """The folders directly in `root` that contain `images` (paths below it, with /), in natural order: class 0, 1, ...

    `bad` are images that cannot be used, which count so that classes keep their numbers without them, and folders that
    cannot be searched, which count too.

    Raises ValueError for images that are in no such folder, and unless there are `num_classes` folders.
    """
    images, bad = list(images), list(bad)
    # A bad name without an extension is a folder, or was meant to be one.
    stray = sorted(
        name for name in (*images, *(name for name in bad if "." in name)) if "/" not in name and name != "."
    )
    if stray:
        raise ValueError(
            f"num_classes is {num_classes}, but {len(stray)} of the images in {printable(root)} are not in a class "
            f"folder, e.g. {printable(stray[0])}: move them into one folder per class, or set num_classes to null"
        )
    folders = tuple(sorted({_class_folder(name) for name in (*images, *bad)}, key=natural))
    if not _is(num_classes, len(folders)):
        shown = [printable(folder) for folder in folders[:SHOWN_CLASSES]]
        more = ["..."] if len(folders) > SHOWN_CLASSES else []
        raise ValueError(
            f"num_classes is {num_classes}, but {printable(root)} has {len(folders)} class "
            f"{'folder' if len(folders) == 1 else 'folders'}: {', '.join(shown + more)}"
        )
    return folders


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key in which 2 comes before 10: adjacent digits count as a number."""
    parts = re.split("([0-9]+)", name)  # text and numbers alternate, so that each is compared with its like
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def folder_labels(names: Iterable[str], folders: Sequence[str]) -> np.ndarray:
    """int64 `[N]`: the index in `folders` of the folder that contains each of the N images `names`, at any depth."""
    label_of = {folder: label for label, folder in enumerate(folders)}
    return np.array([label_of[_class_folder(name)] for name in names], np.int64)


def _class_folder(name: str) -> str:
    return name.partition("/")[0]


def _is(num_classes: int, number: int) -> bool:
    return num_classes == number and not isinstance(num_classes, bool)
