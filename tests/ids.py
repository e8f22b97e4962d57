"""Names of parameters that hold no address in memory: workers of a parallel run have to find the same tests."""


def named(value: object) -> str:
    """The name of an object's class."""
    return type(value).__name__
