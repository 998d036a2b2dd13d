"""Optimizers and learning-rate schedules for HuggingFace Transformers, each chosen by name."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

from hfoptim import schedules
from hfoptim.engine import Name, hyper
from hfoptim.factory.config import Configured, from_config
from hfoptim.factory.create import create_optimizer, create_optimizer_v2
from hfoptim.factory.memory import predict_memory
from hfoptim.factory.modules import OPTIMIZERS
from hfoptim.factory.placements import describe_param_groups
from hfoptim.param_groups.adapters import param_groups_lora_plus
from hfoptim.param_groups.mup import param_groups_mup
from hfoptim.param_groups.options import param_groups_options
from hfoptim.param_groups.paramwise import param_groups_paramwise
from hfoptim.param_groups.selection import decay_groups, layer_decay_groups, param_groups_muon
from hfoptim.param_groups.timm import (
    auto_group_layers,
    optimizer_kwargs,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from hfoptim.registry.catalogue import register
from hfoptim.registry.info import OptimInfo
from hfoptim.registry.lookup import get_optimizer_class, get_optimizer_info, list_optimizers
from hfoptim.training.accumulator import GradientAccumulator
from hfoptim.training.gradient_release import prepare_for_gradient_release, remove_gradient_release
from hfoptim.training.step_guard import StepGuard
from hfoptim.wrappers import (
    EMA,
    GPA,
    GSAM,
    SAM,
    SVRG,
    TRAC,
    WSAM,
    BAdam,
    CombinedOptimizer,
    EMANesterov,
    FriendlySAM,
    GrokFast,
    Lookahead,
    LookSAM,
    Magma,
    Mechanic,
    ScheduleFree,
)

if TYPE_CHECKING:
    from hfoptim.optimizers import *  # noqa: F403
    from hfoptim.trainer import (
        EvaluationWeights,
        GuardSteps,
        OptimizerCallback,
        OptimizerMonitor,
        ScheduleChange,
        TokenWeights,
        disable,
        enable,
        last_whole_checkpoint,
    )

__version__ = "0.1.0"

# What is here beside the optimizers, which are found, and imported when one is asked for.
__all__ = [
    "EMA",
    "GPA",
    "GSAM",
    "OPTIMIZERS",
    "SAM",
    "SVRG",
    "TRAC",
    "WSAM",
    "BAdam",
    "CombinedOptimizer",
    "Configured",
    "EMANesterov",
    "EvaluationWeights",
    "FriendlySAM",
    "GradientAccumulator",
    "GrokFast",
    "GuardSteps",
    "LookSAM",
    "Lookahead",
    "Magma",
    "Mechanic",
    "Name",
    "OptimInfo",
    "OptimizerCallback",
    "OptimizerMonitor",
    "ScheduleChange",
    "ScheduleFree",
    "StepGuard",
    "TokenWeights",
    "auto_group_layers",
    "create_optimizer",
    "create_optimizer_v2",
    "decay_groups",
    "describe_param_groups",
    "disable",
    "enable",
    "from_config",
    "get_optimizer_class",
    "get_optimizer_info",
    "hyper",
    "last_whole_checkpoint",
    "layer_decay_groups",
    "list_optimizers",
    "optimizer_kwargs",
    "param_groups_layer_decay",
    "param_groups_lora_plus",
    "param_groups_muon",
    "param_groups_mup",
    "param_groups_options",
    "param_groups_paramwise",
    "param_groups_weight_decay",
    "predict_memory",
    "prepare_for_gradient_release",
    "register",
    "remove_gradient_release",
    "schedules",
]
_OWN = tuple(__all__)

if TYPE_CHECKING:
    from hfoptim import optimizers as _optimizers

    __all__ += _optimizers.__all__
else:  # made when it is asked for, as it takes a look at all the sources
    del __all__

# What needs transformers is imported when it is asked for.
_OF_TRAINER = (
    "EvaluationWeights",
    "GuardSteps",
    "OptimizerCallback",
    "OptimizerMonitor",
    "ScheduleChange",
    "TokenWeights",
    "disable",
    "enable",
    "last_whole_checkpoint",
)


def __getattr__(name: str) -> Any:
    if name in _OF_TRAINER:
        return getattr(_import_module("hfoptim.trainer"), name)
    optimizers = _import_module("hfoptim.optimizers")
    if name == "__all__":
        return sorted([*_OWN, *optimizers.__all__])
    if not name.startswith("__") and name in optimizers.__all__:
        return getattr(optimizers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OWN, *_import_module("hfoptim.optimizers").__all__})
