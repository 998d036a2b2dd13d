"""Fromage: Frobenius matched gradient descent."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import TENSOR, Group, Name, RuleOptimizer, Scalars, hyper, rule
from hfoptim.optimizers.shared.decay_options import OWN_DECAY
from hfoptim.optimizers.shared.trust_ratio import unless_zero


def _per_step(t: int, group: Group) -> Scalars:
    """The parameter shrinks by 1 / sqrt(1 + lr^2), which is lr s (a g + b p) less: s and b for one lr."""
    lr = float(group["lr"])
    root = math.sqrt(1.0 + lr * lr)
    return {"lr": lr / root, "shrink": lr / (1.0 + root)}


def _ratio(grad: Any, param: Any) -> Any:
    weight_norm, grad_norm = param.norm(), grad.norm()
    return unless_zero(weight_norm / grad_norm, weight_norm, grad_norm, 1.0)


def _report(grad: Any, param: Any, h: Any) -> dict[str, Any]:
    return {"trust_ratio": _ratio(grad, param)}


# Passes over memory, in tensors of the parameter's size:
#   both norms: read grad, param                                            2
#   update: read grad, param; write param                                   3
@rule(TENSOR, per_step=_per_step, report=_report)
def fromage(grad: Any, param: Any, h: Any) -> tuple[Any]:
    """The gradient as long as the parameter, and what keeps the parameter's norm from growing."""
    turned = (grad.norm() > 0).to(grad.dtype)
    return (grad * _ratio(grad, param) + param * (turned * h.shrink),)


class Fromage(RuleOptimizer):
    """Gradient descent that changes every tensor by the same share lr of its norm, without state.

    With g the gradient, p the parameter:

        p = p - lr |p| / |g| g
        p = p / sqrt(1 + lr^2) - lr weight_decay p

    as a tensor that moves at right angles to itself would grow by that factor. Where one of the norms is 0, which the
    paper leaves open, g takes the place of |p| / |g| g: biases that begin at 0 can leave it, and without a gradient
    nothing moves. Written from the paper alone; pytorch_optimizer 4.1 takes the same steps.

    Raises:
        TypeError: a complex parameter.

    Source:
        Bernstein et al., arXiv 2002.03432, algorithm 1.
    """

    rule = fromage
    names = (Name("fromage"),)
    lr: float = hyper(1e-2, "learning rate: the relative change of a tensor per step")
    _: KW_ONLY
    weight_decay: float = OWN_DECAY
