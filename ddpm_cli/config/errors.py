"""The one error of a user's configuration, and how it comes to name the key that it is about."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MOST_SHOWN = 200  # characters of a foreign text


class ConfigError(ValueError):
    """The user's configuration cannot be run; the message names the key, the value and what would do."""


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Turn a refused value, or a file that cannot be used, into a ConfigError that names the key it came from."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        raise ConfigError(f"{key}: {reason}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    except MemoryError as error:
        raise ConfigError(f"{key}: out of memory{f': {error}' if str(error) else ''}") from error


def shown(text: str) -> str:
    """A text that may be anybody's, as a message repeats it: not all of a long one."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint at the candidate nearest to `word`, to end a message with; empty if none is near."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""
