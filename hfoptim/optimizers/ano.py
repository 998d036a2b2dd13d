"""Ano."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, add_scaled, bias_correction, ema, nonnegative, rule, zeros


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    c2 = bias_correction(beta2, t)
    return {
        "alpha1": 1.0 / math.log(max(2, t)) if group["logarithmic_schedule"] else 1.0 - beta1,
        "alpha2": 1.0 - beta2,
        "beta2": beta2,
        # sqrt(v / c2 + eps) = sqrt(v + eps c2) / sqrt(c2)
        "eps": group["eps"] * c2,
        "lr": float(group["lr"]) * math.sqrt(c2),
    }


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def ano(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """The size of the gradient in the direction of the momentum."""
    squared = grad * grad
    exp_avg = ema(exp_avg, grad, h.alpha1)
    exp_avg_sq = add_scaled(exp_avg_sq * h.beta2, (squared - exp_avg_sq).sign() * squared, h.alpha2)
    return abs(grad) * exp_avg.sign() / (exp_avg_sq + h.eps).sqrt(), exp_avg, exp_avg_sq


class Ano(RuleOptimizer):
    """The direction of momentum with the size of the present gradient: for noisy and moving problems.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g                             (logarithmic_schedule: beta1 = 1 - 1 / log(max(2, t)))
        v = beta2 v + (1 - beta2) sign(g^2 - v) g^2
        p = p - lr |g| sign(m) / sqrt(v / (1 - beta2^t) + eps) - lr weight_decay p

    State: `exp_avg` (m), `exp_avg_sq` (v). Follows the author's ano.py, and his anolog.py in beta1, which is negative
    in the first two steps; that file leaves out the correction of v. pytorch_optimizer adds eps to the root.

    Raises:
        ValueError: betas[1] below 1/2, where v can become negative.

    Source:
        Kegreisz, arXiv 2508.18258; Adrienkgz/ano-experiments.
    """

    rule = ano
    names = (
        Name("ano"),
        Name(
            "anolog",
            "Ano with a momentum that grows longer",
            options={"logarithmic_schedule": True, "betas": (0.92, 0.999)},
        ),
    )
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.92, 0.99), "decay rates of m and v, the latter 1/2 at least")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    eps: float = hyper(1e-8, "added to the bias-corrected v", above=0.0, excluded="would divide by 0")
    _: KW_ONLY
    logarithmic_schedule: bool = hyper(False, "beta1 grows with the steps")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["betas"][1] < 0.5:
            raise ValueError(f"betas[1]={group['betas'][1]!r} lets the second moment become negative; give 0.5 or more")
