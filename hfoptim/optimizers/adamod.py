"""AdaMod."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, ema, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import folded, moments


def _per_step(t: int, group: Group) -> Scalars:
    scalars = folded(t, group)
    return {**scalars, "alpha3": 1.0 - group["beta3"], "size": scalars["lr"], "lr": 1.0}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative, exp_avg_lr=nonnegative)
def adamod(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, exp_avg_lr: Any, h: Any) -> tuple[Any, ...]:
    """Adam's step sizes, each at most the average of its own past."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    rate = h.size / (exp_avg_sq.sqrt() + h.eps)
    exp_avg_lr = ema(exp_avg_lr, rate, h.alpha3)
    return torch.minimum(rate, exp_avg_lr) * exp_avg, exp_avg, exp_avg_sq, exp_avg_lr


class AdaMod(RuleOptimizer):
    """Adam whose step sizes are bounded by a long average of themselves: warms up by itself.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        r = lr sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps)
        s = beta3 s + (1 - beta3) r
        p = p - min(r, s) m - lr weight_decay p

    State: `exp_avg` (m), `exp_avg_sq` (v), `exp_avg_lr` (s). Author and pytorch_optimizer agree; in the latter beta3 is
    the last of betas, (0.9, 0.99, 0.9999) by default.

    Source:
        Ding et al., arXiv 1910.12249; lancopku/AdaMod.
    """

    rule = adamod
    names = (Name("adamod"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    beta3: float = hyper(0.999, "decay rate of s", below=1.0)
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
