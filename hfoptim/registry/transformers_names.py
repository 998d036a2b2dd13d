"""The names of optimizers and schedules that transformers has itself: in a Trainer they mean transformers' own.

They are read from transformers' source, because importing it takes seconds and the command line only shows them.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from pathlib import Path

# Enum -> the module of transformers that defines it (4.57 and 5.x).
_MODULES = {"OptimizerNames": "training_args", "SchedulerType": "trainer_utils"}


def optimizer_names() -> frozenset[str]:
    """What `TrainingArguments(optim=...)` takes without hfoptim."""
    return _values("OptimizerNames")


def schedule_names() -> frozenset[str]:
    """What `TrainingArguments(lr_scheduler_type=...)` takes without hfoptim."""
    return _values("SchedulerType")


@functools.cache
def _values(kind: str) -> frozenset[str]:
    """The values of one of transformers' enums."""
    package = importlib.util.find_spec("transformers")
    for folder in (package and package.submodule_search_locations) or []:
        source = (Path(folder) / _MODULES[kind]).with_suffix(".py")
        if source.exists():
            for node in ast.parse(source.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and node.name == kind:
                    entries = [entry.value for entry in node.body if isinstance(entry, ast.Assign)]
                    return frozenset(str(ast.literal_eval(entry)) for entry in entries)
    # Defined elsewhere, in a release that is not known here.
    found = getattr(importlib.import_module(f"transformers.{_MODULES[kind]}"), kind)
    return frozenset(member.value for member in found)
