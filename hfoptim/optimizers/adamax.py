"""Adamax."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, bias_correction, ema, nonnegative, rule, zeros


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    lr = float(group["lr"]) / bias_correction(beta1, t)
    return {"alpha1": 1.0 - beta1, "beta2": beta2, "eps": group["eps"], "lr": lr}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_inf=nonnegative)
def adamax(grad: Any, param: Any, exp_avg: Any, exp_inf: Any, h: Any) -> tuple[Any, Any, Any]:
    """The first moment over the largest of the past gradients, each of which fades away."""
    exp_avg = ema(exp_avg, grad, h.alpha1)
    exp_inf = torch.maximum(exp_inf * h.beta2, grad.abs() + h.eps)
    return exp_avg / exp_inf, exp_avg, exp_inf


class Adamax(RuleOptimizer):
    """Adam with the infinity norm of past gradients in place of their second moment, with torch.optim.Adamax's numbers.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p                                  (decoupled_weight_decay: - lr weight_decay p at the end)
        m = beta1 m + (1 - beta1) g
        u = max(beta2 u, |g| + eps)
        p = p - lr / (1 - beta1^t) m / u

    State: `exp_avg` (m), `exp_inf` (u); a state_dict of torch.optim.Adamax loads.

    Source:
        Kingma and Ba, arXiv 1412.6980, section 7.1; torch.optim.Adamax.
    """

    rule = adamax
    decay = Decay.COUPLED
    decoupled_by = "decoupled_weight_decay"
    names = (
        Name("adamax"),
        Name("adamaxw", "Adamax with decoupled weight decay", options={"decoupled_weight_decay": True}),
    )
    lr: float = hyper(2e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and u")
    eps: float = hyper(1e-8, "added to the gradient's size")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    decoupled_weight_decay: bool = hyper(False, "decoupled weight decay", in_peers=False)
