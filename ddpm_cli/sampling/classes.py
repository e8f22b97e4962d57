"""The classes that a user gives by number or name, as numbers."""

from collections.abc import Sequence

from ddpm_cli.config.errors import ConfigError, nearest, shown
from ddpm_cli.io.text import printable

SHOWN = 20  # by name


def class_numbers(
    chosen: list[int | str] | int | str | None, names: Sequence[str]
) -> list[int | str] | int | str | None:
    """The value of `classes=` as numbers: a list of them, "all", or None.

    Args:
        chosen: a class or a list of classes, each by number or name; a number is never taken for a name.
        names: of class 0, 1, ...; empty if they are not known.

    Raises:
        ConfigError: for a name that no class or more than one class has, and a number that can only be meant as a name.
    """
    if chosen is None or chosen == "all":
        return chosen
    listed = chosen if isinstance(chosen, list) else [chosen]
    return [_number(one, names) for one in listed]


def classes_text(numbers: Sequence[int], names: Sequence[str]) -> str:
    """ "0: cat, 3: dog", or the numbers alone if the names are not known."""
    more = ["..."] if len(numbers) > SHOWN else []
    known = [f"{number}: {printable(names[number])}" if number < len(names) else f"{number}" for number in numbers]
    return ", ".join([*known[:SHOWN], *more])


def _number(one: int | str, names: Sequence[str]) -> int:
    if isinstance(one, int):
        if one >= len(names) and str(one) in names:
            raise ConfigError(
                f"classes: no class number {one}; the classes are {classes_text(range(len(names)), names)}; a name "
                f"that is a number needs quotes: 'classes=[\"{one}\"]'"
            )
        return one
    if names.count(one) == 1:
        return names.index(one)
    if not names:
        raise ConfigError(f"classes: the checkpoint does not know the names of its classes, got {shown(one)!r}")
    there_are = f"the classes are {classes_text(range(len(names)), names)}"
    if names.count(one) > 1:
        raise ConfigError(f"classes: more than one class is called {shown(one)!r}, give its number; {there_are}")
    raise ConfigError(f"classes: no class is called {shown(one)!r}{nearest(one, names)}; {there_are}")
