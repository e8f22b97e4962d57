"""Text from anywhere, such as the names of files, in a form that is safe to show."""


def printable(text: str) -> str:
    r"""`text` with everything escaped that a terminal or UTF-8 cannot show: \n, \x1b; \xff for an invalid byte."""
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte of a file name that it could not decode (PEP 383)
        return f"\\x{ord(character) & 0xFF:02x}"
    return character if character.isprintable() else repr(character)[1:-1]


def size_text(shape: tuple[int, int, int]) -> str:
    """The size of an image of `shape` (C, H, W) for people: height x width x channels."""
    channels, height, width = shape
    return f"{height} x {width} x {channels}"
