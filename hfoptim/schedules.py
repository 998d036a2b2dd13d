"""`hfoptim.schedules`: the package `schedules` that comes with hfoptim, whatever else `import schedules` may find.

A `schedules.py` beside a training script, a folder of that name, or another distribution is found before ours. So
hfoptim takes its schedules from here only: from the folder beside its own, under the name `hfoptim.schedules`. No
module is loaded twice: where ours was imported as `schedules` before, these are the modules; and a later `import
schedules`, where it finds ours, gives those that are loaded already. Where it finds something else, that is left alone.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

_TOP = "schedules"
# The folders that hold both packages: as they were found, and where links lead.
_PARENTS = [os.path.dirname(os.path.dirname(path)) for path in (__file__, os.path.realpath(__file__))]


def _is_ours(file: str | None) -> bool:
    return file is not None and os.path.dirname(os.path.realpath(file)) in {
        os.path.realpath(os.path.join(parent, _TOP)) for parent in _PARENTS
    }


def _alias(old: str, new: str) -> None:
    """Enter a package and its parts under another name, too."""
    for name in [name for name in sys.modules if name == old or name.startswith(f"{old}.")]:
        sys.modules[new + name[len(old) :]] = sys.modules[name]


class _SamePackage(MetaPathFinder, Loader):
    """Gives the package that is loaded already where `import schedules` finds its files."""

    def __init__(self, package: ModuleType) -> None:
        self._package, self._spec = package, package.__spec__

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _TOP:
            return None
        others = (getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self)
        found = (find(fullname, path, target) for find in others if find is not None)
        spec = next((spec for spec in found if spec is not None), None)
        return ModuleSpec(_TOP, self, origin=spec.origin) if spec is not None and _is_ours(spec.origin) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._package

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importing has put that of the second name there
        _alias(__name__, _TOP)


def _package() -> ModuleType:
    loaded = sys.modules.get(_TOP)
    if loaded is not None and _is_ours(getattr(loaded, "__file__", None)):
        _alias(_TOP, __name__)
        return loaded
    spec = PathFinder.find_spec(__name__, _PARENTS)
    if spec is None or spec.loader is None:
        raise ImportError(f"the package {_TOP!r} of hfoptim is not beside it, in {_PARENTS[0]}: install hfoptim again")
    package = sys.modules[__name__] = module_from_spec(spec)
    spec.loader.exec_module(package)
    sys.meta_path.insert(0, _SamePackage(package))
    return package


if TYPE_CHECKING:
    from schedules import *  # noqa: F403
    from schedules import checks as checks
    from schedules import drawing as drawing
    from schedules import following as following
    from schedules import registry as registry
    from schedules import table as table
else:
    sys.modules[__name__] = _package()
