"""Clipping by a norm: that of a gradient, or of all gradients together, which a probe sums; and the options for it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

from hfoptim.engine import Group, Probe, Rule, Scalars, hyper


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


@cache
def clipped(inner: Rule, by_value: bool, by_norm: bool) -> Rule:
    """A rule of gradients that are clipped before, by the options `clip_grad_value` and `clip_grad_norm`."""
    if not (by_value or by_norm):
        return inner

    def per_step(t: int, group: Group, grad_sq: Any = None) -> Scalars:
        scalars = inner.per_step(t, group)
        if by_value:
            scalars = {**scalars, "largest": group["clip_grad_value"]}
        return {**scalars, "clip": clip_factor(grad_sq, group["clip_grad_norm"])} if by_norm else scalars

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        if by_value:
            grad = grad.clamp(min=-h.largest, max=h.largest)
        return inner.fn(grad * h.clip if by_norm else grad, param, *args)

    fn.__name__ = inner.name
    probe = Probe(squared_norm) if by_norm else None
    return replace(inner, fn=fn, per_step=per_step, probe=probe, sparse=inner.sparse and not by_norm)
