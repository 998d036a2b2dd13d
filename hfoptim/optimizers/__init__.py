"""The optimizers: a file each, with the rule (mathematics) and the class (declarations), found by themselves.

A class is imported when it is asked for: `from hfoptim.optimizers import Lion` imports `hfoptim.optimizers.lion` alone.
"""

from functools import cache as _cache
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import Any

from hfoptim.engine import discovery as _discovery


@_cache
def found() -> tuple[_discovery.FoundModule, ...]:
    """The modules there are, with what their classes declare; none of them is imported."""
    return tuple(module for folder in __path__ for module in _discovery.found_in(_Path(folder), __name__))


@_cache
def sources() -> dict[str, str]:
    """What is here for users -> the module it is in."""
    return {name: module.name for module in found() for name in module.public}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(sources())
    if name.startswith("__") or name not in sources():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(sources()[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *sources()})
