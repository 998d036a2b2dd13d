"""DualAdam."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, Scalars, bias_correction, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import moment_rates, moments


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    inverse = 1.0 - t * group["switch_rate"]
    inverse = inverse if inverse >= max(group["switch_rate"], 0.0) else 0.0
    return {
        **moment_rates(t, group),
        **fixed_decay(group),
        "scale": 1.0 / math.sqrt(bias_correction(beta2, t)),
        "eps": group["eps"],
        "inverse": inverse,
        "ordinary": 1.0 - inverse,
        "lr": float(group["lr"]) / bias_correction(beta1, t),
    }


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def dual_adam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum times a mean of the second moment's root and of its inverse."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    root = exp_avg_sq.sqrt() * h.scale + h.eps
    return exp_avg * (h.ordinary / root + root * h.inverse), exp_avg, exp_avg_sq


class DualAdam(Decoupling):
    """Adam that begins as its inverse, multiplying by the root of the second moment where Adam divides.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  d = sqrt(v / (1 - beta2^t)) + eps
        a = 1 - t switch_rate, or 0 if that is less than switch_rate
        p = p - lr m / (1 - beta1^t) ((1 - a) / d + a d)

    or with `weight_decouple`, g as it is, p - ... - lr weight_decay p (fixed_decay: - weight_decay p). State: `exp_avg`
    (m), `exp_avg_sq` (v).

    Follows the authors' code, as pytorch_optimizer does. In the paper a = max(0, 1 - t switch_rate), which is another
    number at one step where 1 / switch_rate is not whole, and d of the inverse has no eps.

    Source:
        Shi et al., Combining Adam and its Inverse Counterpart to Enhance Generalization of Deep Learning Optimizers,
        arXiv 2603.07122; LongJin-lab/DualAdam.
    """

    rule = dual_adam
    names = (Name("dualadam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    switch_rate: float = hyper(1e-2, "share of the inverse that is given up per step")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
