"""Optional packages: if one is missing, the message names the extra that installs it."""

import importlib.util


def require(extra: str, *modules: str) -> None:
    """Raise ValueError if one of these modules, which an extra brings, is not installed; imports none of them."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not installed: pip install 'ddpm-cli[{extra}]'")
