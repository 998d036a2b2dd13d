"""Optimizers and learning-rate schedules for HuggingFace Transformers, each chosen by name."""

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

import schedules
from hfoptim.accumulation import GradientAccumulator
from hfoptim.catalogue import OptimInfo
from hfoptim.optimizers import (
    SGD,
    Adafactor,
    AdafactorSchedule,
    Adam,
    AdamW,
    AdamWeightDecay,
    Lion,
    get_adafactor_schedule,
)
from hfoptim.param_groups import param_groups_layer_decay, param_groups_weight_decay
from hfoptim.registry import (
    create_optimizer,
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)

if TYPE_CHECKING:
    from hfoptim.trainer import OptimizerCallback, disable, enable

__version__ = "0.1.0"

# `hfoptim.schedules` and its parts are the same modules as `schedules`, for those who want no top-level name.
for _name in [name for name in _sys.modules if name == "schedules" or name.startswith("schedules.")]:
    _sys.modules[f"hfoptim.{_name}"] = _sys.modules[_name]

__all__ = [
    "SGD",
    "Adafactor",
    "AdafactorSchedule",
    "Adam",
    "AdamW",
    "AdamWeightDecay",
    "GradientAccumulator",
    "Lion",
    "OptimInfo",
    "OptimizerCallback",
    "create_optimizer",
    "create_optimizer_v2",
    "disable",
    "enable",
    "get_adafactor_schedule",
    "get_optimizer_class",
    "get_optimizer_info",
    "list_optimizers",
    "param_groups_layer_decay",
    "param_groups_weight_decay",
    "schedules",
]

# What needs transformers is imported when it is asked for.
_OF_TRAINER = ("OptimizerCallback", "disable", "enable")


def __getattr__(name: str) -> Any:
    if name in _OF_TRAINER:
        return getattr(_import_module("hfoptim.trainer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
