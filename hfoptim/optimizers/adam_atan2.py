"""Adam-atan2: Adam without eps."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, Scalars, bias_correction, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import moment_rates, moments


def _per_step(t: int, group: Group) -> Scalars:
    """Both bias corrections as one factor of the second moment's root: the angle stays the same."""
    beta1, beta2 = group["betas"]
    stretch = group["b"] * bias_correction(beta1, t) / math.sqrt(bias_correction(beta2, t))
    return {**moment_rates(t, group), "stretch": stretch, "lr": float(group["lr"]) * group["a"]}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def adam_atan2(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """The angle of both moments."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    return exp_avg.atan2(exp_avg_sq.sqrt() * h.stretch), exp_avg, exp_avg_sq


class AdamAtan2(FullyDecoupling):
    """Adam with the angle of its two moments in place of their quotient: no eps, and steps of lr a pi / 2 at most.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = a atan2(m / (1 - beta1^t), b sqrt(v / (1 - beta2^t)))
        p = p - lr u - lr weight_decay p                        (decouple_lr: - lr / max_lr weight_decay p)

    Steps do not change when the loss is multiplied by a number, however small. State: `exp_avg` (m), `exp_avg_sq` (v).

    Follows lucidrains, whose a = 1.27 is 4 / pi: where m is sqrt(v), as at the first step, u is 1. `decoupled_wd` there
    is `decouple_lr` here.

    Source:
        Everett et al., Scaling Exponents Across Parameterizations and Optimizers, arXiv 2407.05872;
        lucidrains/adam-atan2-pytorch.
    """

    rule = adam_atan2
    names = (Name("adam_atan2"),)
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    a: float = hyper(1.27, "factor of the angle", above=0.0, excluded="would take no step")
    b: float = hyper(1.0, "factor of the second moment's root", above=0.0, excluded="would leave the sign alone")
