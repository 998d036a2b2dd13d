"""The table of optimizers: every test of this folder runs over ENTRIES.

A new optimizer joins by one file in this folder that makes an `Entry`; nothing else names it.
"""

from __future__ import annotations

import importlib
import pkgutil

from cases.entry import Checkpoint, Entry, Options, Reference, Variant


def _entries() -> list[Entry]:
    """The entries that the modules of this folder make, by name.

    Raises:
        ValueError: two of them have one name.
    """
    found: dict[str, Entry] = {}
    for _, name, _ in pkgutil.iter_modules(__path__):
        for made in vars(importlib.import_module(f"{__name__}.{name}")).values():
            if isinstance(made, Entry) and found.setdefault(made.name, made) is not made:
                raise ValueError(f"two entries are called {made.name!r}; the second one is in {name}.py")
    return [found[name] for name in sorted(found)]


ENTRIES = _entries()

__all__ = ["ENTRIES", "Checkpoint", "Entry", "Options", "Reference", "Variant"]
