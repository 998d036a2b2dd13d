"""Grams: the direction of the gradient, the size of Adam's steps."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Name, RuleOptimizer, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import folded, moments_step


@rule(ELEMENT, per_step=folded, exp_avg=zeros, exp_avg_sq=nonnegative)
def grams(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's step, as long as it is, with the sign of the gradient."""
    update, exp_avg, exp_avg_sq = moments_step(grad, param, exp_avg, exp_avg_sq, h)
    return update.abs() * grad.sign(), exp_avg, exp_avg_sq


class Grams(RuleOptimizer):
    """Adam's step sizes in the direction of the newest gradient: momentum only says how far.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = sqrt(1 - beta2^t) / (1 - beta1^t) |m| / (sqrt(v) + eps) sign(g)
        p = p - lr u - lr weight_decay p

    State: `exp_avg` (m), `exp_avg_sq` (v). Follows the author, who adds eps before the bias correction of v.
    pytorch_optimizer 4.1 adds it after.

    Source:
        Cao et al., arXiv 2412.17107; Gunale0926/Grams.
    """

    rule = grams
    names = (Name("grams"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-6, "added to the root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    correct_bias: bool = hyper(True, "False leaves out the bias corrections")
