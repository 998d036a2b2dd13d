"""FOCUS: Signum that is drawn to where the parameters have been on average."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Decay, Group, Name, RuleOptimizer, Scalars, bias_correction, ema, hyper, rule, zeros
from hfoptim.engine.rule import add_scaled


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    inside = float(group["weight_decay"])
    return {
        "alpha1": 1.0 - beta1,
        # The average with its bias correction in it, which at the first step is the parameter itself.
        "alpha2": (1.0 - beta2) / bias_correction(beta2, t) if t > 1 else 1.0,
        "gamma": group["gamma"],
        "inside": inside,
        "shrink": float(group["lr"]) * inside,
    }


@rule(ELEMENT, per_step=_per_step, exact_weights=True, exp_avg=zeros, pbar=zeros)
def focus(grad: Any, param: Any, exp_avg: Any, pbar: Any, h: Any) -> tuple[Any, Any, Any]:
    """The sign of the momentum, and a share of the sign of the way from the average of the parameters."""
    exp_avg, pbar = ema(exp_avg, grad, h.alpha1), ema(pbar, param, h.alpha2)
    way = add_scaled(param - pbar, pbar, -h.shrink)
    update = add_scaled(add_scaled(exp_avg.sign(), way.sign(), h.gamma), pbar, h.inside)
    return update, exp_avg, pbar


class FOCUS(RuleOptimizer):
    """Sign of the momentum, with an attraction to the average of the parameters, against noise in narrow valleys.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        a = beta2 a + (1 - beta2) p;  q = a / (1 - beta2^t)
        p = p - lr weight_decay q
        p = p - lr (sign(m) + gamma sign(p - q))

    Weight decay shrinks towards 0 by the average. State: `exp_avg` (m), `pbar` (q: with its bias correction, unlike the
    author's a, so that the first p - q is 0 and not rounding noise, whose sign would count).

    Source:
        Liu et al., arXiv 2501.12243; liuyz0/FOCUS.
    """

    decay = Decay.INSIDE
    rule = focus
    names = (Name("focus"),)
    lr: float = hyper(1e-2, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and a")
    gamma: float = hyper(0.1, "strength of the attraction")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr")
