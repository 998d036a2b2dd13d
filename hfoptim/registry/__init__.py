"""Optimizers by name: what there is, and the options each takes."""

from hfoptim.registry.catalogue import ENTRY_POINTS, WRAPPERS, Catalogue, key, known_optimizers, register
from hfoptim.registry.info import OptimInfo, WrapperInfo
from hfoptim.registry.lookup import (
    canonical_name,
    check_options,
    complete_groups,
    dummy,
    engine_class_of,
    finds_matrices,
    get_optimizer_class,
    get_optimizer_info,
    group_defaults,
    list_optimizers,
    option_defaults,
    option_names,
    resolve_options,
)

__all__ = [
    "ENTRY_POINTS",
    "WRAPPERS",
    "Catalogue",
    "OptimInfo",
    "WrapperInfo",
    "canonical_name",
    "check_options",
    "complete_groups",
    "dummy",
    "engine_class_of",
    "finds_matrices",
    "get_optimizer_class",
    "get_optimizer_info",
    "group_defaults",
    "key",
    "known_optimizers",
    "list_optimizers",
    "option_defaults",
    "option_names",
    "register",
    "resolve_options",
]
