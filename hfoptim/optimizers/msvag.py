"""M-SVAG: momentum, smaller where gradients are noise."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, ema, hyper, nonnegative, rule, zeros
from hfoptim.engine.rule import bias_correction
from hfoptim.optimizers.shared.decay_options import OWN_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    """Averages m / c, v / c with the bias correction c: c goes into lr and into `share`, which multiplies m^2."""
    beta = group["beta"]
    correction = bias_correction(beta, t)
    # The variance of an average of t gradients, as a share of the variance of one.
    rho = bias_correction(beta * beta, t) * (1.0 - beta) / ((1.0 + beta) * correction**2)
    rho = min(rho, 0.9999)
    lr = float(group["lr"]) / correction
    return {"alpha": 1.0 - beta, "noise": rho / (1.0 - rho), "share": 1.0 / correction, "lr": lr}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def msvag(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum times the share of its square that is not noise."""
    exp_avg, exp_avg_sq = ema(exp_avg, grad, h.alpha), ema(exp_avg_sq, grad * grad, h.alpha)
    signal = exp_avg * exp_avg * h.share
    factor = signal / (signal + (exp_avg_sq - signal) * h.noise)
    # Without a signal 0 / 0; beyond 1 by rounding.
    factor = torch.where(signal > 0, factor.clamp(min=0.0, max=1.0), 0.0)
    return exp_avg * factor, exp_avg, exp_avg_sq


class MSVAG(RuleOptimizer):
    """Momentum, each entry of it times an estimate of how much of its size is signal and not noise.

    With g the gradient, p the parameter, t the step, c = 1 - beta^t:

        m = beta m + (1 - beta) g
        v = beta v + (1 - beta) g^2
        r = min((1 - beta) (1 + beta^t) / ((1 + beta) c), 0.9999)
        s = (v / c - (m / c)^2) / (1 - r)               (variance of g)
        f = (m / c)^2 / ((m / c)^2 + r s)               (in [0, 1]; 0 where m is 0)
        p = p - lr f m / c - lr weight_decay p

    State: `exp_avg` (m), `exp_avg_sq` (v). Author's code and pytorch_optimizer agree.

    Source:
        Balles and Hennig, arXiv 1705.07774; lballes/msvag.
    """

    rule = msvag
    names = (Name("msvag"),)
    lr: float = hyper(1e-2, "learning rate")
    beta: float = hyper(0.9, "decay rate of m and v", below=1.0)
    _: KW_ONLY
    weight_decay: float = OWN_DECAY
