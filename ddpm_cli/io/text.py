"""Text from anywhere, such as the names of files, in a form that is safe to show."""


def printable(text: str) -> str:
    r"""`text` with everything escaped that a terminal or UTF-8 cannot show: \n, \x1b; \xff for an invalid byte."""
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a file name that it could not decode (PEP 383)
        return f"\\x{ord(character) & 0xFF:02x}"
    return character if character.isprintable() else repr(character)[1:-1]


def duration_text(seconds: float) -> str:
    """A span of time to its two largest units at most, as people say it."""
    seconds = round(seconds)
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{seconds} s"
    if minutes < 60:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def size_text(shape: tuple[int, int, int]) -> str:
    """The size of an image of `shape` (C, H, W) for people: height x width x channels."""
    channels, height, width = shape
    return f"{height} x {width} x {channels}"
