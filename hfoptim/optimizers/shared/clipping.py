"""The norm of all gradients together: the probe that sums its squares, and the factor that clips by it."""

from __future__ import annotations

from typing import Any


def squared_norm(grad: Any, param: Any, *state_and_h: Any) -> dict[str, Any]:
    """A probe for the norm of all gradients together."""
    return {"grad_sq": grad.square().sum()}


def clip_factor(grad_sq: Any, most: float) -> Any:
    """What gradients are multiplied by so that their norm, the root of `grad_sq`, is at most `most`."""
    return most / grad_sq.sqrt().clamp(min=most)
