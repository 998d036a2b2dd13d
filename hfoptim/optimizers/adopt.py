"""ADOPT."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import ELEMENT, Decay, Group, Name, RuleOptimizer, Scalars, ema, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import moment_rates
from hfoptim.optimizers.shared.peer_flags import TIMM_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    scalars = moment_rates(t, group)
    # The first step only sets v: a clip of 0 keeps the gradient out of m, and eps, which would be a divisor of 0, idle.
    first = t == 1
    if first:
        scalars |= {"alpha2": 1.0, "eps": 1.0, "clip": 0.0}
    else:
        exponent = group["clip_exp"]
        scalars |= {"eps": group["eps"], "clip": math.inf if exponent is None else (t - 1.0) ** exponent}
    if group["decoupled"]:
        scalars["decay"] = 0.0 if first else float(group["lr"]) * group["weight_decay"]
    return scalars


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def adopt(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum of the gradient, normalised by the second moment of the gradients before it and clipped."""
    normed = (grad / exp_avg_sq.sqrt().clamp(min=h.eps)).clamp(min=-h.clip, max=h.clip)
    exp_avg = ema(exp_avg, normed, h.alpha1)
    return exp_avg, exp_avg, ema(exp_avg_sq, grad * grad, h.alpha2)


class Adopt(RuleOptimizer):
    """Adam that keeps the current gradient out of its own normalisation; converges with any beta2.

    With g the gradient, p the parameter, t the step:

        first step:  v = g^2;  p, m stay
        c = (t - 1)^clip_exp
        m = beta1 m + (1 - beta1) clip(g / max(sqrt(v), eps), -c, c)
        p = p - lr m
        v = beta2 v + (1 - beta2) g^2

    with g = g + weight_decay p before it, or under `decoupled` p = p - lr m - lr weight_decay p, also from the second
    step on. State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of timm's Adopt loads.

    Follows timm, which is the author's code with another default of clip_exp (0.25 there). pytorch_optimizer clips at
    t^clip_exp and decays at the first step too.

    Source:
        Taniguchi et al., arXiv 2411.02853; iShohei220/adopt; timm 1.0, `timm.optim.Adopt`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled"
    rule = adopt
    peer_flags = TIMM_DECAY
    names = (
        Name("adopt"),
        Name("adoptw", "ADOPT with decoupled weight decay", options={"decoupled": True}),
        Name("cadopt", "ADOPT with caution", options={"caution": True}),
        Name("cadoptw", "ADOPT with caution and decoupled decay", options={"caution": True, "decoupled": True}),
        Name(
            "adoptc",
            "ADOPT with decoupled weight decay that falls with the square of lr",
            options={"decoupled": True, "corrected_weight_decay": True},
        ),
        Name(
            "cadoptc",
            "adoptc with caution",
            options={"caution": True, "decoupled": True, "corrected_weight_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.9999), "decay rates of m and v")
    eps: float = hyper(1e-6, "least divisor of the gradient")
    clip_exp: float | None = hyper(0.333, "exponent of the growing clip; None does not clip")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    decoupled: bool = hyper(False, "decoupled weight decay")
