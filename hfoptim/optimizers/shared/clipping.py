"""Clipping by a norm: that of a gradient, or of all gradients together, which a probe sums; and the options for it."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import hyper


def squared_norm(grad: Any, param: Any, *state_and_h: Any) -> dict[str, Any]:
    """A probe for the norm of all gradients together."""
    return {"grad_sq": grad.square().sum()}


def clip_factor(grad_sq: Any, most: Any) -> Any:
    """What gradients are multiplied by so that their norm, the root of `grad_sq`, is at most `most`."""
    return most / grad_sq.sqrt().clamp(min=most)


def clip_at(default: float | None, what: str, in_peers: bool = True) -> float | None:
    """Declare an option: the largest of something; None does not clip."""
    doc, excluded = f"largest {what}; None does not clip", "would erase every gradient"
    return hyper(default, doc, above=0.0, excluded=excluded, in_peers=in_peers)
