"""Options and values that have been renamed, for the message to somebody who gives the old name."""

_KEYS = {"data.alpha": "data.background"}
_VALUES = {"data.flip": {True: "horizontal", False: "none"}}


def new_key(key: str) -> str:
    """A hint at what an option is called now, to end a message with; empty if it never had another name."""
    return f" (it is called {_KEYS[key]} now)" if key in _KEYS else ""


def new_value(key: str, value: object) -> str:
    """The same of a value of an option."""
    if not isinstance(value, bool) or key not in _VALUES:
        return ""
    return f" (it is called {_VALUES[key][value]} now)"
