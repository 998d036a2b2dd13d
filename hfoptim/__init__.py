"""Optimizers and learning-rate schedules for HuggingFace Transformers, each chosen by name."""

import sys as _sys
from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

import schedules
from hfoptim.accumulation import GradientAccumulator
from hfoptim.catalogue import OptimInfo
from hfoptim.engine.runners.release import prepare_for_gradient_release, remove_gradient_release
from hfoptim.optimizers import (
    SGD,
    Adafactor,
    AdafactorSchedule,
    Adagrad,
    Adahessian,
    Adam,
    AdamMini,
    AdamW,
    AdamWeightDecay,
    AdamWScheduleFree,
    Adan,
    AdEMAMix,
    Adopt,
    Lamb,
    Lars,
    Lion,
    Muon,
    NvNovoGrad,
    Prodigy,
    get_adafactor_schedule,
)
from hfoptim.param_groups import param_groups_layer_decay, param_groups_muon, param_groups_weight_decay
from hfoptim.registry import (
    create_optimizer,
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
)
from hfoptim.wrappers import SAM, Lookahead

if TYPE_CHECKING:
    from hfoptim.trainer import OptimizerCallback, disable, enable

__version__ = "0.1.0"

# `hfoptim.schedules` and its parts are the same modules as `schedules`, for those who want no top-level name.
for _name in [name for name in _sys.modules if name == "schedules" or name.startswith("schedules.")]:
    _sys.modules[f"hfoptim.{_name}"] = _sys.modules[_name]

__all__ = [
    "SAM",
    "SGD",
    "AdEMAMix",
    "Adafactor",
    "AdafactorSchedule",
    "Adagrad",
    "Adahessian",
    "Adam",
    "AdamMini",
    "AdamW",
    "AdamWScheduleFree",
    "AdamWeightDecay",
    "Adan",
    "Adopt",
    "GradientAccumulator",
    "Lamb",
    "Lars",
    "Lion",
    "Lookahead",
    "Muon",
    "NvNovoGrad",
    "OptimInfo",
    "OptimizerCallback",
    "Prodigy",
    "create_optimizer",
    "create_optimizer_v2",
    "disable",
    "enable",
    "get_adafactor_schedule",
    "get_optimizer_class",
    "get_optimizer_info",
    "list_optimizers",
    "param_groups_layer_decay",
    "param_groups_muon",
    "param_groups_weight_decay",
    "prepare_for_gradient_release",
    "remove_gradient_release",
    "schedules",
]

# What needs transformers is imported when it is asked for.
_OF_TRAINER = ("OptimizerCallback", "disable", "enable")


def __getattr__(name: str) -> Any:
    if name in _OF_TRAINER:
        return getattr(_import_module("hfoptim.trainer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
