"""Optimizers by name, for wrappers: the registry, which knows the wrappers, says here how it makes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

Make = Callable[[str, Any, dict[str, Any]], Optimizer]

_make: list[Make] = []


def made_by(make: Make) -> None:
    """Let `optimizer_named` call this function, with its own arguments."""
    _make[:] = [make]


def optimizer_named(name: str, params: Any, options: dict[str, Any]) -> Optimizer:
    """The optimizer of a name, over parameters.

    Args:
        name: in the registry.
        params: parameters, named parameters, or dicts that define parameter groups.
        options: the optimizer's.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    (make,) = _make
    return make(name, params, options)
