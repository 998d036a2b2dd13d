"""Run a training script with hfoptim's names enabled, the script itself unchanged.

    python -m hfoptim SCRIPT [ARGS]
    accelerate launch -m hfoptim SCRIPT [ARGS]

The script sees what it would see under `python SCRIPT [ARGS]`. In particular transformers is not imported before it
does so itself, because scripts set environment variables such as HF_HOME before that: the names are enabled at that
moment.
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

USAGE = """usage: python -m hfoptim SCRIPT [ARGS]
       python -m hfoptim -m MODULE [ARGS]

Runs a training script with the optimizers and schedules of hfoptim known to transformers by name:
    python -m hfoptim run_clm.py --optim lion --lr_scheduler_type inverse_sqrt ...

For the other commands (compare, list, info) there is the command `hfoptim`."""


class EnableOnImport(MetaPathFinder):
    """Enables hfoptim's names right after transformers has been imported."""

    def __init__(self) -> None:
        self._searching = False

    def install(self) -> None:
        """Enable now if transformers is there already, else when it comes."""
        if "transformers" in sys.modules:
            _enable()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        # Libraries also ask for the spec just to see whether transformers is installed: only running it counts.
        if fullname != "transformers" or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                run(module)
                _enable()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def main(argv: list[str]) -> None:
    """Run the script or module that `argv` names with the rest of it as its arguments."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not argv:
        _fail("no script given")
    if argv[0] == "-m":
        if len(argv) < 2:
            _fail("-m needs the name of a module")
        EnableOnImport().install()
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    if argv[0].startswith("-"):
        _fail(f"unknown option {argv[0]!r}; options of the script come after the script")
    script = argv[0]
    if not os.path.isfile(script):
        _fail(f"no such script: {script!r} (in {os.getcwd()})")
    EnableOnImport().install()
    sys.argv = list(argv)
    if not getattr(sys.flags, "safe_path", False):
        # `python -m` put the current folder there; a script has its own.
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    runpy.run_path(script, run_name="__main__")


def _enable() -> None:
    from hfoptim.trainer import enable

    enable()


def _fail(message: str) -> NoReturn:
    print(f"{USAGE}\n\npython -m hfoptim: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
