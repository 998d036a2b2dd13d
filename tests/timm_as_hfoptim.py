"""A pytest plugin: `timm.optim` means hfoptim, for timm's own tests of its optimizers."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import peers

import hfoptim

NAMES = (
    *("create_optimizer_v2", "get_optimizer_class", "get_optimizer_info", "OptimInfo", "Lookahead"),
    *("param_groups_layer_decay", "param_groups_weight_decay"),
)
# timm's providers of other packages' optimizers, and what hfoptim does not have.
OTHERS = ("fused*", "bnb*", "kron*")

helpers = peers.submodule("timm.optim._helpers")
timms_list = peers.load("timm.optim._optim_factory.list_optimizers")


def list_optimizers(filter: Any = "", exclude_filters: Any = None, **options: Any) -> list[str]:
    """timm's names that hfoptim has."""
    return timms_list(filter, [*(exclude_filters or ()), *OTHERS], **options)


optim: Any = ModuleType("timm.optim")
for name in NAMES:
    setattr(optim, name, getattr(hfoptim, name))
optim.list_optimizers, optim._helpers = list_optimizers, helpers
sys.modules |= {"timm": ModuleType("timm"), "timm.optim": optim, "timm.optim._helpers": helpers}
