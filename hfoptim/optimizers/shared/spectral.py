"""What the optimizers with an orthogonal step share: its momentum, and the factor by shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Scalars, ema

# What an update of so many rows and columns is multiplied by.
LR_SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "rms_to_rms": lambda rows, columns: math.sqrt(rows / columns),
    "rsqrt_in": lambda rows, columns: 1.0 / math.sqrt(columns),
}


def momentum_rates(t: int, group: Group) -> Scalars:
    """What `direction` reads, and the least norm that Newton-Schulz divides by."""
    return {"alpha": 1.0 - group["momentum"], "momentum": group["momentum"], "eps": group["eps"]}


def direction(grad: Any, momentum_buffer: Any, h: Any, nesterov: bool) -> tuple[Any, Any]:
    """What is made orthogonal, and the new momentum: that itself, or with nesterov one step ahead of it."""
    momentum_buffer = ema(momentum_buffer, grad, h.alpha)
    return (ema(grad, momentum_buffer, h.momentum) if nesterov else momentum_buffer), momentum_buffer


def by_shape(update: Tensor, scale: str) -> Tensor:
    """A matrix times the factor of its shape, one of `LR_SCALES`."""
    return update * LR_SCALES[scale](*update.shape[-2:])


def norm_of_matrix(x: Any) -> Any:
    """The Frobenius norm of each matrix."""
    return over_matrix(x * x, "sum").sqrt()


def over_matrix(x: Any, how: str) -> Any:
    """The `sum` or the `mean` over each matrix."""
    return getattr(getattr(x, how)(dim=-1, keepdim=True), how)(dim=-2, keepdim=True)
