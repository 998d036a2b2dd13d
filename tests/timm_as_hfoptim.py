"""A pytest plugin: `timm.optim` means hfoptim, for timm's own tests of its optimizers."""

from __future__ import annotations

import sys
from types import ModuleType

import peers

import hfoptim

NAMES = (
    *("create_optimizer_v2", "list_optimizers", "get_optimizer_class", "get_optimizer_info", "OptimInfo"),
    *("param_groups_layer_decay", "param_groups_weight_decay"),
)

scheduler = peers.submodule("timm.scheduler.plateau_lr")
for name in ("timm", "timm.optim", "timm.scheduler"):
    sys.modules[name] = ModuleType(name)
for name in NAMES:
    setattr(sys.modules["timm.optim"], name, getattr(hfoptim, name))
sys.modules["timm.scheduler"].PlateauLRScheduler = scheduler.PlateauLRScheduler  # type: ignore[attr-defined]
