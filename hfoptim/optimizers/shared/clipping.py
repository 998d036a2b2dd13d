"""Clipping by a norm: of a gradient, of all of them together, which a probe sums, or of an update; with its options."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

from hfoptim.engine import TENSOR, Group, Probe, Rule, Scalars, bias_correction, hyper, rms


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
def clipped(inner: Rule, by_value: str | None, by_norm: str | None) -> Rule:
    """A rule of gradients that are clipped before, by the options that have these names."""
    if not (by_value or by_norm):
        return inner

    def per_step(t: int, group: Group, grad_sq: Any = None) -> Scalars:
        scalars = inner.per_step(t, group)
        if by_value:
            scalars = {**scalars, "largest": group[by_value]}
        return {**scalars, "clip": clip_factor(grad_sq, group[by_norm])} if by_norm else scalars

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        if by_value:
            grad = grad.clamp(min=-h.largest, max=h.largest)
        return inner.fn(grad * h.clip if by_norm else grad, param, *args)

    fn.__name__ = inner.name
    probe = Probe(squared_norm) if by_norm else None
    return replace(inner, fn=fn, per_step=per_step, probe=probe, sparse=inner.sparse and not by_norm)


CLIPPING_THRESHOLD: float | None = clip_at(
    None,
    "root mean square of g over the root of v, beyond which updates are scaled down (timm's)",
    False,
)


@cache
def clipped_by_rms(inner: Rule) -> Rule:
    """A rule with Adam's step, and updates scaled down while gradients are large beside the second moment.

    By max(1, rms(g / (sqrt(v / c2) + eps)) / clipping_threshold), of arXiv 2304.13013. The rule's last state is v, or
    with AMSGrad the largest one, and its eps is eps sqrt(c2).
    """

    def per_step(t: int, group: Group) -> Scalars:
        root = math.sqrt(bias_correction(group["betas"][1], t))
        return {**inner.per_step(t, group), "inverse_clip": root / group["clipping_threshold"]}

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        update, *state = inner.fn(grad, param, *args)
        h = args[-1]
        size = rms(grad / (state[-1].sqrt() + h.eps))
        return update / (size * h.inverse_clip).clamp(min=1.0), *state

    fn.__name__ = inner.name
    return replace(inner, fn=fn, per_step=per_step, scope=TENSOR)
