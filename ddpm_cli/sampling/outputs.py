"""What `ddpm-sample` makes of the images that it has drawn: the picture of all, single ones, an array, a trajectory.

Everything is made beside the images, put on the disk, and only then given its place: nobody sees half of it. Images
are read as they are needed, as there may be more of them than fit into memory.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm_cli.io import durable
from ddpm_cli.io.images import grid, save_gif, save_png
from ddpm_cli.io.own_output import GIF_FILE, GRID_FILE, IMAGES_DIRECTORY, NPZ_FILE, STRIP_FILE
from ddpm_cli.io.picture_labels import can_be_drawn, with_labels
from ddpm_cli.io.run_dir import CONFIG_FILE
from ddpm_cli.sampling.classes import classes_text
from ddpm_cli.sampling.film import animation, strip
from ddpm_cli.sampling.image_store import ImageStore
from ddpm_cli.sampling.modes import Plan
from ddpm_cli.sampling.provenance import about

GRID_IMAGES = 400  # more would make a picture nobody can open; the others are in save=images or save=npz
GRID_COLUMNS = 20  # of rows so long that not all of them would fit, so much is shown at least
CHUNK_BYTES = 1 << 24
BESIDE = {"grid": (), "images": (IMAGES_DIRECTORY,), "npz": (NPZ_FILE,)}  # what `save` has written beside the picture


def write(store: ImageStore, plan: Plan, *, save: str, drawn_by: str, class_names: Sequence[str] = ()) -> list[Path]:
    """Write the picture of all images, what else `save` asks for, the trajectory, and what they were drawn by.

    Args:
        save: "grid" alone, "images" (single PNGs too) or "npz" (uint8 `[N, H, W, C]` too).
        drawn_by: as of `provenance`.
        class_names: of class 0, 1, ...; none if they are not known.

    Returns:
        What is there now to be looked at or read.

    Raises:
        OSError: if something cannot be written.
    """
    whole = about(drawn_by)
    made: dict[str, Callable[[Path], None]] = {
        GRID_FILE: lambda path: save_png(picture(store, plan, class_names), path, whole)
    }
    if save == "images":
        made[IMAGES_DIRECTORY] = lambda path: _write_images(store, plan, drawn_by, class_names, path)
    if save == "npz":
        made[NPZ_FILE] = lambda path: _write_npz(store, path)
    trajectory = store.trajectory()
    if trajectory is not None:
        names = [_class_name(label, class_names) for label in (plan.labels or ())[: trajectory.shape[2]]]
        made[STRIP_FILE] = lambda path: save_png(strip(trajectory, plan.times, names), path, whole)
        made[GIF_FILE] = lambda path: save_gif(animation(trajectory, plan.times), path)
    # Where the run that trained lies in the same directory, that one's stays.
    _put(store, CONFIG_FILE, lambda path: path.write_text(drawn_by, encoding="utf-8"))
    for name, make in made.items():
        _put(store, name, make)
    durable.sync(store.directory)
    return [store.directory / name for name in made]


def picture(store: ImageStore, plan: Plan, class_names: Sequence[str] = ()) -> Tensor:
    """The plan's rows, each behind its name and what is shown with it, as many as a person can look at.

    Returns:
        uint8 `[C, H, W]`
    """
    names = _row_names(plan, class_names)
    if plan.columns is None:
        return with_labels(grid(store.images(range(min(plan.images, GRID_IMAGES)))), left=names)
    columns = min(plan.columns, max(GRID_COLUMNS, GRID_IMAGES // plan.rows))
    cells = []
    for row in range(min(plan.rows, GRID_IMAGES // columns)):
        given = [] if plan.shown is None else [plan.shown[row]]
        first, shown = row * plan.per_row, columns - sum(map(len, given))
        cells.append(torch.cat([*given, store.images(range(first, first + min(plan.per_row, shown)))]))
    return with_labels(grid(torch.cat(cells), columns=columns), left=names[: len(cells)])


def _row_names(plan: Plan, class_names: Sequence[str]) -> list[str]:
    """What each row is of: its class, its seeds; none where nothing is to be said, or a row is of several classes."""
    of_modes, of_classes = list(plan.row_names), []
    if plan.labels is not None:
        rows = [plan.labels[first : first + plan.per_row] for first in range(0, plan.images, plan.per_row)]
        if all(len(set(labels)) == 1 for labels in rows):
            of_classes = [_class_name(labels[0], class_names) for labels in rows]
    if of_modes and of_classes:
        return [f"{of_class}, {of_mode}" for of_class, of_mode in zip(of_classes, of_modes, strict=True)]
    return of_modes or of_classes


def _class_name(label: int, names: Sequence[str]) -> str:
    """What a picture calls a class: its name, or its number where that is not known or not in letters of the font."""
    return names[label] if label < len(names) and can_be_drawn(names[label]) else f"{label}"


def _write_images(store: ImageStore, plan: Plan, drawn_by: str, class_names: Sequence[str], directory: Path) -> None:
    directory.mkdir()
    for indices in _chunks(store):
        for i, image in zip(indices, store.images(indices), strict=True):
            of_class = "" if plan.labels is None else f", class {classes_text([plan.labels[i]], class_names)}"
            save_png(image, directory / f"{i:06d}.png", about(drawn_by, f"image {i} of {plan.images}{of_class}"))


def _write_npz(store: ImageStore, path: Path) -> None:
    """What `numpy.savez(path, images)` would write."""
    header = {"descr": "|u1", "fortran_order": False, "shape": store.shape}
    with (
        durable.errors_naming(path),
        zipfile.ZipFile(path, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for indices in _chunks(store):
            member.write(store.images(indices).permute(0, 2, 3, 1).numpy().data)


def _chunks(store: ImageStore) -> Iterator[range]:
    """The indices of all images, few enough at a time."""
    count = store.shape[0]
    at_a_time = max(1, CHUNK_BYTES // math.prod(store.shape[1:]))
    for first in range(0, count, at_a_time):
        yield range(first, min(first + at_a_time, count))


def _put(store: ImageStore, name: str, make: Callable[[Path], object]) -> None:
    """Let `make` write something, and give it its place once it is on the disk."""
    target, path = store.directory / name, store.folder / f"new_{name}"
    if target.exists():  # by an attempt that was stopped later on
        return
    if path.is_dir():
        durable.remove_tree(path)
    path.unlink(missing_ok=True)  # never written over: a copy of the directory (`cp -al`) may share it
    make(path)
    _flush(path)
    os.rename(path, target)


def _flush(path: Path) -> None:
    """Put a file, or a directory of many, on the disk."""
    if not path.is_dir():
        with durable.errors_naming(path), open(path, "r+b") as file:
            durable.flush(file.fileno(), path)
    elif hasattr(os, "sync"):  # one by one that would take longer than drawing them
        os.sync()
