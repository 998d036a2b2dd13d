"""Run a training script with hfoptim's names enabled, the script itself unchanged.

    python -m hfoptim [--token-weights] [--replace] SCRIPT [ARGS]
    accelerate launch -m hfoptim [--token-weights] [--replace] SCRIPT [ARGS]

With --token-weights every Trainer that the script makes has the callback `hfoptim.TokenWeights`. With --replace ours
stand for transformers' own optimizers that need a package each, as by `hfoptim.enable(replace=True)`.

The script sees what it would see under `python SCRIPT [ARGS]`. In particular transformers is not imported before it
does so itself, because scripts set environment variables such as HF_HOME before that: the names are enabled at that
moment. A mistake in an argument of hfoptim's ends it with the message and exit code 2, as one that argparse finds.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import runpy
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

USAGE = """usage: python -m hfoptim [--token-weights] [--replace] SCRIPT [ARGS]
       python -m hfoptim [--token-weights] [--replace] -m MODULE [ARGS]

Runs a training script with the optimizers and schedules of hfoptim known to transformers by name:
    python -m hfoptim run_clm.py --optim lion --lr_scheduler_type inverse_sqrt ...
With --token-weights, accumulated micro-batches count by their tokens (hfoptim.TokenWeights):
    python -m hfoptim --token-weights run_summarization.py --gradient_accumulation_steps 4 ...
With --replace, galore_*, apollo_*, lomo, adalomo, grokadamw, schedule_free_* and stable_adamw are hfoptim's:
    python -m hfoptim --replace run_clm.py --optim galore_adamw --optim_target_modules all-linear ...

For the other commands (compare, list, info) there is the command `hfoptim`."""


# What a script may import first; our own module imports transformers, and is not whole before that is there.
_ON_IMPORT_OF = ("transformers", "hfoptim.trainer")


class EnableOnImport(MetaPathFinder):
    """Enables hfoptim's names right after transformers has been imported, by the script or by `hfoptim.trainer`.

    Args:
        token_weights (default False): give every Trainer the callback `TokenWeights`, too.
        replace (False): as in `hfoptim.enable`.
    """

    def __init__(self, token_weights: bool = False, replace: bool = False) -> None:
        self._token_weights, self._replace = token_weights, replace
        self._searching = False

    def install(self) -> None:
        """Enable now if transformers is there already, else when it comes."""
        if "transformers" in sys.modules:
            self._enable()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        # Libraries also ask for the spec just to see whether transformers is installed: only running it counts.
        if fullname not in _ON_IMPORT_OF or self._searching:
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
                self._enable()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def _enable(self) -> None:
        from hfoptim.trainer import TokenWeights, enable, private

        enable(replace=self._replace)
        if self._token_weights:
            private.in_every_trainer(TokenWeights)


def main(argv: list[str]) -> None:
    """Run the script or module that `argv` names with the rest of it as its arguments."""
    flags = list(itertools.takewhile(("--token-weights", "--replace").__contains__, argv))
    argv = argv[len(flags) :]
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if not argv:
        _fail("no script given")
    if argv[0] == "-m" and len(argv) < 2:
        _fail("-m needs the name of a module")
    if argv[0].startswith("-") and argv[0] != "-m":
        _fail(f"unknown option {argv[0]!r}; options of the script come after the script")
    if argv[0] != "-m" and not os.path.isfile(argv[0]):
        _fail(f"no such script: {argv[0]!r} (in {os.getcwd()})")
    EnableOnImport("--token-weights" in flags, "--replace" in flags).install()
    try:
        _run(argv)
    except (ImportError, TypeError, ValueError) as error:
        arguments = sys.modules.get("hfoptim.trainer.arguments")
        if arguments is None or not arguments.is_mistake(error):
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(argv: list[str]) -> None:
    if argv[0] == "-m":
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(argv)
    if not getattr(sys.flags, "safe_path", False):
        # `python -m` put the current folder there; a script has its own.
        sys.path[0] = os.path.dirname(os.path.realpath(argv[0]))
    runpy.run_path(argv[0], run_name="__main__")


def _fail(message: str) -> NoReturn:
    print(f"{USAGE}\n\npython -m hfoptim: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
