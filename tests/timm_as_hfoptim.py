"""A pytest plugin: `timm.optim` means hfoptim, for timm's own tests of its optimizers."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import peers
from test_timm_suite import piece_of

import hfoptim

NAMES = (
    *("create_optimizer_v2", "get_optimizer_class", "get_optimizer_info", "OptimInfo", "Lookahead"),
    *("param_groups_layer_decay", "param_groups_weight_decay"),
)
# timm's providers of other packages' optimizers, and what hfoptim does not have.
OTHERS = ("fused*", "bnb*")
# timm's modules that its tests import a class from: that class, and our name of the same optimizer.
CLASSES = {
    "adafactor": ("Adafactor", "adafactor"),
    "adafactor_bv": ("AdafactorBigVision", "adafactorbv"),
    "adahessian": ("Adahessian", "adahessian"),
    "adamw": ("AdamWLegacy", "adamwlegacy"),
    "kron": ("Kron", "kron"),
    "laprop": ("LaProp", "laprop"),
    "mars": ("Mars", "mars"),
    "muon": ("Muon", "muon"),
    "nadamw": ("NAdamW", "nadamw"),
    "nvnovograd": ("NvNovoGrad", "novograd"),
}

helpers = peers.submodule("timm.optim._helpers")
timms_list = peers.load("timm.optim._optim_factory.list_optimizers")


def list_optimizers(filter: Any = "", exclude_filters: Any = None, **options: Any) -> list[str]:
    """timm's names that hfoptim has, and hfoptim's own."""
    without = [*(exclude_filters or ()), *OTHERS]
    return sorted({*timms_list(filter, without, **options), *hfoptim.list_optimizers(filter, without, **options)})


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Of the tests that piece alone which is asked for."""
    left_out = [item for item in items if piece_of(item.name) != int(os.environ["TIMM_PIECE"])]
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: Any) -> None:
    """timm's tests of the multi-tensor form, which are for classes of timm's modules, are for all of ours."""
    for module in {item.module for item in session.items}:
        module._FOREACH_OPTIMIZERS[:] = module._REGISTRY_OPTIMIZERS


optim: Any = ModuleType("timm.optim")
for name in NAMES:
    setattr(optim, name, getattr(hfoptim, name))
optim.list_optimizers, optim._helpers = list_optimizers, helpers
factory: Any = ModuleType("timm.optim._optim_factory")
factory.default_registry = ModuleType("default_registry")
factory.default_registry.create_optimizer = hfoptim.create_optimizer_v2
sys.modules |= {
    "timm": ModuleType("timm"),
    "timm.optim": optim,
    "timm.optim._helpers": helpers,
    "timm.optim._optim_factory": factory,
}
for module, (class_name, ours) in CLASSES.items():
    one = sys.modules[f"timm.optim.{module}"] = ModuleType(f"timm.optim.{module}")
    setattr(one, class_name, hfoptim.get_optimizer_class(ours))
