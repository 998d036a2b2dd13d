"""Updates without the part that only lengthens the weights: the projection of AdamP and SGDP (arXiv 2006.08217)."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Group, Rule, RuleOptimizer, Scalars, cautious
from hfoptim.optimizers.shared.matrices import as_matrix


class _View(NamedTuple):
    """Sums over what a view of a tensor has as one vector: its rows, or all of it."""

    dim: int | None

    def sum(self, x: Any) -> Any:
        return x.sum() if self.dim is None else x.sum(self.dim, keepdim=True)

    def norm(self, x: Any) -> Any:
        return self.sum(x * x).sqrt()

    def mean(self, x: Any) -> Any:
        return x.mean() if self.dim is None else x.mean(self.dim, keepdim=True)

    def is_scale_invariant(self, grad: Any, param: Any, h: Any) -> Any:
        """Whether gradients are so orthogonal to the weights that their length does not matter: a truth value.

        The cosine of the angle is below delta / sqrt(size); the size is in the mean of the squares.
        """
        sizes = self.norm(grad).clamp(min=h.project_eps) * self.mean(param * param).sqrt().clamp(min=h.project_eps)
        cosine = self.sum(grad * param).abs() / sizes
        return (cosine if self.dim is None else cosine.amax()) < h.delta

    def projected(self, update: Any, grad: Any, param: Any, h: Any, masked: bool) -> Any:
        """The update without its part along the weights; with caution of what is left of update and gradient."""
        direction = param / (self.norm(param) + h.project_eps)

        def across(x: Any) -> Any:
            return x - direction * self.sum(direction * x)

        return across(cautious(across(update), across(grad))) if masked else across(update)


_ROWS, _WHOLE = _View(1), _View(None)


@cache
def projecting(inner: Rule, masked: bool) -> Rule:
    """The rule whose update is projected: a row for each output, or all as one vector, where these are scale-invariant.

    Where it is, the step of the decay is `wd_ratio` times as large.

    Args:
        inner: the rule that gives the update.
        masked: with caution, on the sphere on which a projected parameter moves.
    """

    def per_step(t: int, group: Group) -> Scalars:
        share = decay_step(group)
        own = {"delta": group["delta"], "project_eps": group["eps"], "share": share}
        own["saved"] = share * (1.0 - group["wd_ratio"])
        return {"lr": float(group["lr"]), **inner.per_step(t, group), **own}

    # Passes over memory, in tensors of the parameter's size:
    #   the angles, and the part along the weights: read grad, param, state; write state
    #   update: read param, state, write param; the rows are in the cache where they are short
    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *_, h = args
        update, *state = inner.fn(grad, param, *args)
        rows, whole = (view.is_scale_invariant(grad, param, h) for view in (_ROWS, _WHOLE))
        of_rows, of_whole = (view.projected(update, grad, param, h, masked) for view in (_ROWS, _WHOLE))
        update = cautious(update, grad) if masked else update
        update = torch.where(rows, of_rows, torch.where(whole, of_whole, update))
        share = h.share - (rows | whole).to(update.dtype) * h.saved
        return (update * h.lr, share, *state)

    fn.__name__ = inner.name
    return Rule(fn, TENSOR, inner.state, per_step, returns_step_size=True, shape=as_matrix)


@cache
def masking(inner: Rule) -> Rule:
    """The rule whose update is masked."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        update, *state = inner.fn(grad, param, *args)
        return (cautious(update, grad), *state)

    fn.__name__ = inner.name
    return replace(inner, fn=fn, scope=TENSOR)


def decay_step(group: Group) -> float:
    """What multiplies the weight decay: lr, and with a momentum what that makes of it in the long run."""
    return float(group["lr"]) / (1.0 - float(group.get("momentum", 0.0)))


class Projecting(RuleOptimizer):
    """An optimizer with AdamP's options, and its projection of parameters with more than one dimension."""

    masks_momentum = True

    def inner_rule(self, group: dict[str, Any]) -> Rule:
        """The rule whose update is projected."""
        raise NotImplementedError

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        inner = self.inner_rule(group)
        masked = group["caution"] == "momentum"
        if param.ndim > 1:
            return projecting(inner, masked)
        return masking(inner) if masked else inner
