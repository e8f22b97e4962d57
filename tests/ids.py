"""Names of parameters that hold no address in memory: workers of a parallel run have to find the same tests."""


def named(value: object) -> str:
    """The name of a function, of a partial call with its options, or of an object's class."""
    function = getattr(value, "func", value)
    name = getattr(function, "__name__", type(value).__name__)
    options = ", ".join(
        f"{key}={option}" for key, option in getattr(value, "keywords", {}).items() if not callable(option)
    )
    return f"{name}({options})" if options else name
