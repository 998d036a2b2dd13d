"""Optimizers by name: what there is, and the options each takes."""

from hfoptim.registry.catalogue import ENTRIES, WRAPPERS, OptimInfo, WrapperInfo
from hfoptim.registry.lookup import (
    canonical_name,
    check_options,
    complete_groups,
    dummy,
    engine_class_of,
    get_optimizer_class,
    get_optimizer_info,
    group_defaults,
    list_optimizers,
    option_names,
    resolve_options,
)

__all__ = [
    "ENTRIES",
    "WRAPPERS",
    "OptimInfo",
    "WrapperInfo",
    "canonical_name",
    "check_options",
    "complete_groups",
    "dummy",
    "engine_class_of",
    "get_optimizer_class",
    "get_optimizer_info",
    "group_defaults",
    "list_optimizers",
    "option_names",
    "resolve_options",
]
