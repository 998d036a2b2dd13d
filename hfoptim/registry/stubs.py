"""`python -m hfoptim.registry.stubs` writes what type checkers know of `hfoptim.optimizers`, whose classes are found.

`make lint` runs it; with `--check` it writes nothing and fails where the file is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hfoptim import optimizers

STUB = Path(optimizers.__file__).with_suffix(".pyi")


def stub() -> str:
    """The text of the file."""
    public = optimizers.sources()
    return "\n".join(
        [
            "# Written by `python -m hfoptim.registry.stubs`, which `make lint` runs.",
            "from hfoptim.engine.discovery import FoundModule",
            *(
                f"from {public[name]} import {name} as {name}"
                for name in sorted(public, key=lambda name: (public[name], *_ruffs_order(name)))
            ),
            "",
            "__all__ = [",
            *(f'    "{name}",' for name in sorted(public, key=_ruffs_order)),
            "]",
            "",
            "def found() -> tuple[FoundModule, ...]: ...",
            "def sources() -> dict[str, str]: ...",
            "",
        ]
    )


def _ruffs_order(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), not name[0].isupper(), name


def main(arguments: list[str]) -> int:
    """Write the file, or with `--check` compare it."""
    if "--check" not in arguments:
        STUB.write_text(stub(), encoding="utf-8")
        return 0
    current = STUB.exists() and STUB.read_text(encoding="utf-8") == stub()
    if not current:
        print(f"{STUB} is not up to date; run python -m hfoptim.registry.stubs", file=sys.stderr)
    return not current


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
