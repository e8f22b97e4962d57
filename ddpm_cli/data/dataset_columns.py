"""The columns of a table of the datasets package that hold images and labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ddpm_cli.data.labels import natural
from ddpm_cli.io.text import printable

SHOWN = 10  # names in a message


class Labels(NamedTuple):
    """The class of each row."""

    numbers: np.ndarray  # int64 [N]
    class_names: tuple[str, ...]


def image_column(table: Any, name: str | None) -> str:
    """The name of the image column: `name`, or the only one. Raises ValueError, which lists the columns."""
    import datasets

    features = table.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if name is None:
        return _only(images, "image", "images", table)
    feature = _feature(table, "image", name)
    stored = feature.get("bytes") if isinstance(feature, dict) else feature
    if name not in images and stored not in (datasets.Value("binary"), datasets.Value("large_binary")):
        raise ValueError(f"image: {printable(name)} holds no images. {_columns(table)}")
    return name


def as_stored(table: Any, column: str) -> Any:
    """The table with that column alone, its images left encoded as they are stored."""
    import datasets

    alone = table.select_columns([column])
    if isinstance(alone.features[column], datasets.Image):
        alone = alone.cast_column(column, datasets.Image(decode=False))
    return alone.with_format(None)


def labels_in(table: Any, name: str | None, num_classes: int) -> Labels:
    """Labels of `num_classes` classes, from the column `name` or the only column of class labels.

    Whole numbers are used as they are; texts are numbered in natural order.

    Raises:
        ValueError: for another number of classes, for rows without a label, or if there is no such column.
    """
    import datasets

    if name is None:
        labels = [column for column, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
        name = _only(labels, "label", "class labels", table)
    feature = _feature(table, "label", name)
    values = table.select_columns([name]).with_format(None)[:][name]
    if isinstance(feature, datasets.ClassLabel):
        class_names = tuple(feature.names)
    elif all(isinstance(value, str) for value in values):
        class_names = tuple(sorted(set(values), key=natural))
        number = {value: i for i, value in enumerate(class_names)}
        values = [number[value] for value in values]
    elif all(isinstance(value, int) for value in values):
        class_names = tuple(map(str, range(num_classes)))
    else:
        raise ValueError(f"label: {printable(name)} holds neither class labels, nor only whole numbers, nor only texts")
    _check_classes(class_names, num_classes, name)
    _check_numbers(values, num_classes, name)
    return Labels(np.array(values, np.int64), tuple(map(printable, class_names)))


def _only(columns: list[str], option: str, kind: str, table: Any) -> str:
    """The only column of a kind. Raises ValueError if there is none, or more than one."""
    if len(columns) == 1:
        return columns[0]
    there = f"there are {len(columns)} columns of {kind}" if columns else f"there is no column of {kind}"
    raise ValueError(f"{option}: {there}; choose one with data.{option}=NAME. {_columns(table)}")


def _check_classes(class_names: tuple[str, ...], num_classes: int, column: str) -> None:
    if isinstance(num_classes, bool) or num_classes != len(class_names):
        more = ["..."] if len(class_names) > SHOWN else []
        shown = ", ".join([*map(printable, class_names[:SHOWN]), *more])
        there = f"{printable(column)} has {len(class_names)} classes: {shown}"
        raise ValueError(f"num_classes is {num_classes}, but {there}")


def _check_numbers(values: Sequence[int | None], num_classes: int, column: str) -> None:
    without = [row for row, value in enumerate(values) if value is None or not 0 <= value < num_classes]
    if without:
        raise ValueError(
            f"num_classes is {num_classes}, but {len(without):,} of {len(values):,} rows have no label from 0 to "
            f"{num_classes - 1} in {printable(column)}, e.g. row {without[0]}: {values[without[0]]}"
        )


def _feature(table: Any, option: str, name: str) -> Any:
    if name not in table.features:
        raise ValueError(f"{option}: no column {printable(name)!r}. {_columns(table)}")
    return table.features[name]


def _columns(table: Any) -> str:
    described = [f"{printable(name)} ({_kind(feature)})" for name, feature in table.features.items()]
    more = [f"{len(described) - SHOWN} more"] if len(described) > SHOWN else []
    return f"The columns are {', '.join([*described[:SHOWN], *more])}"


def _kind(feature: Any) -> str:
    """The package's name for it: Image, ClassLabel, int64."""
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
