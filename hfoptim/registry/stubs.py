"""`python -m hfoptim.registry.stubs` writes what type checkers know of names that are made while Python runs.

The classes of `hfoptim.optimizers` are found; the factories of `schedules` get their parameters from a decorator. `make
lint` runs it; with `--check` it writes nothing and fails where a file is not up to date.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from hfoptim import optimizers, schedules
from hfoptim.schedules import table

_HEAD = "# Written by `python -m hfoptim.registry.stubs`, which `make lint` runs."


def of_optimizers() -> str:
    """The text of hfoptim/optimizers/__init__.pyi."""
    public = optimizers.sources()
    lines = [
        _HEAD,
        "from hfoptim.engine.discovery import FoundModule",
        *_imports(public.items()),
        "",
        *_all(public),
        "",
        "def found() -> tuple[FoundModule, ...]: ...",
        "def sources() -> dict[str, str]: ...",
        "",
    ]
    return "\n".join(lines)


def of_schedules() -> str:
    """The text of schedules/__init__.pyi: each factory with its parameters."""
    factories = {info.factory.__name__: inspect.signature(info.factory) for info in table.SCHEDULES.values()}
    package = ast.parse(inspect.getsource(schedules))
    public = [
        (alias.name, f".{node.module}")
        for node in package.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name not in factories
    ]
    lines = [
        _HEAD,
        "from collections.abc import Callable, Mapping, Sequence",
        "from typing import Any",
        "",
        "from torch.optim import Optimizer",
        "",
        *_imports(public),
        "",
        *_all(list(map(str, vars(schedules)["__all__"]))),
        "",
        *(_function(name, factories[name]) for name in sorted(factories)),
        "",
    ]
    return "\n".join(lines)


def _imports(public: Iterable[tuple[str, str]]) -> list[str]:
    ordered = sorted(public, key=lambda pair: (pair[1], *_ruffs_order(pair[0])))
    return [f"from {module} import {name} as {name}" for name, module in ordered]


def _all(names: Iterable[str]) -> list[str]:
    return ["__all__ = [", *(f'    "{name}",' for name in sorted(names, key=_ruffs_order)), "]"]


def _function(name: str, signature: inspect.Signature) -> str:
    """A declaration, with a parameter on each line, so that no line is long."""
    lines = []
    for each in signature.parameters.values():
        if each.kind is inspect.Parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        stars = "**" if each.kind is inspect.Parameter.VAR_KEYWORD else ""
        default = json.dumps(each.default) if isinstance(each.default, str) else repr(each.default)
        lines.append(
            f"{stars}{each.name}: {each.annotation}" + (f" = {default}" if each.default is not each.empty else "")
        )
    inside = "".join(f"    {line},\n" for line in lines)
    return f"def {name}(\n{inside}) -> {signature.return_annotation}: ..."


def _ruffs_order(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), not name[0].isupper(), name


STUBS = {
    Path(optimizers.__file__).with_suffix(".pyi"): of_optimizers,
    Path(schedules.__file__).with_suffix(".pyi"): of_schedules,
}


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` compare them."""
    if "--check" not in arguments:
        for path, text in STUBS.items():
            path.write_text(text(), encoding="utf-8")
        return 0
    old = [path for path, text in STUBS.items() if not path.exists() or path.read_text(encoding="utf-8") != text()]
    for path in old:
        print(f"{path} is not up to date; run python -m hfoptim.registry.stubs", file=sys.stderr)
    return bool(old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
