"""Weights with what their rounding has taken from them: read, and written back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.storage.formats import exact_dtype
from hfoptim.engine.storage.rounding import join_float32, split_float32
from hfoptim.engine.storage.rows import kahan


def exact_weight(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """A parameter with its residual, in float32, or in its own dtype where that is wider.

    Args:
        param: the parameter, or this rank's part of it, as its residual.
        state: its state; empty before its first step.
    """
    if "remainder" in state:
        return join_float32(param, state["remainder"])
    weight = param.to(exact_dtype(param.dtype))
    return weight + state["kahan_comp"] if "kahan_comp" in state else weight


def write_weight(param: Tensor, state: Mapping[str, Any], weight: Tensor) -> None:
    """Put a weight into a parameter, and what rounding takes from it into its residual, if it has one."""
    if "remainder" in state:
        number, rest = split_float32(weight, state["remainder"].dtype)
        state["remainder"].copy_(rest)
    elif "kahan_comp" in state:
        number, rest = kahan(weight, torch.zeros((), device=param.device), param.dtype)
        state["kahan_comp"].copy_(rest)
    else:
        number = weight
    param.copy_(number)
