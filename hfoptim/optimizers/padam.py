"""Padam."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, hyper
from hfoptim.optimizers.shared.moments import adam_state, folded, moments, with_largest


def _per_step(t: int, group: Group) -> Scalars:
    return {**folded(t, group), "exponent": 2.0 * group["partial"]}


@cache
def padam(amsgrad: bool, quarter: bool) -> Rule:
    """The rule, with or without AMSGrad; `quarter` where `partial` is 1/4, as a root is faster than a power."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
        largest, kept = with_largest(exp_avg_sq, state)
        root = largest.sqrt() + h.eps
        return (exp_avg / (root.sqrt() if quarter else root**h.exponent), exp_avg, exp_avg_sq, *kept)

    fn.__name__ = "padam"
    return Rule(fn, ELEMENT, adam_state(amsgrad), _per_step)


class Padam(RuleOptimizer):
    """Adam that adapts partially: between SGD with momentum (`partial` 0) and AMSGrad (1/2).

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  w = max(w, v)           (without amsgrad w = v)
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(w) + eps)^(2 partial)

    Wants a learning rate near that of SGD. State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w) with amsgrad.

    Follows the author. pytorch_optimizer has no w, which is amsgrad=False here.

    Source:
        Chen et al., arXiv 1806.06763; uclaml/Padam.
    """

    decay = Decay.COUPLED
    names = (Name("padam"),)
    lr: float = hyper(0.1, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of w")
    weight_decay: float = hyper(0.0, "L2 penalty")
    amsgrad: bool = hyper(True, "divide by the largest v so far")
    partial: float = hyper(0.25, "exponent of w", most=0.5)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return padam(group["amsgrad"], group["partial"] == 0.25)
