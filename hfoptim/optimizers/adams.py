"""AdamS: Adam with stable weight decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Probe, Rule, RuleOptimizer, Scalars, bias_correction, ema, hyper
from hfoptim.optimizers.shared.moments import adam_state, corrected, moments_step


def _of_probe(t: int, group: Group) -> Scalars:
    beta2 = group["betas"][1]
    return {"alpha2": 1.0 - beta2, "scale": 1.0 / bias_correction(beta2, t)}


def _second_moments(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> dict[str, Any]:
    """The sum of the second moments of this step, and how many there are."""
    *largest, h = args
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    if largest:
        exp_avg_sq = torch.maximum(largest[0], exp_avg_sq)
    return {"second": (exp_avg_sq * h.scale).sum(), "entries": torch.ones_like(grad).sum()}


def _per_step(t: int, group: Group, second: Tensor, entries: Tensor) -> Scalars:
    root = (second / entries).sqrt().clamp(min=group["eps"])
    return {**corrected(t, group), "decay": float(group["lr"]) * group["weight_decay"] / root}


adams = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), _per_step, Probe(_second_moments, _of_probe))
adams_amsgrad = Rule(moments_step, ELEMENT, adam_state(amsgrad=True), _per_step, Probe(_second_moments, _of_probe))


class AdamS(RuleOptimizer):
    """Adam whose decoupled weight decay is divided by the root of the mean second moment of all parameters.

    With g the gradient, p the parameter, t the step, V the mean of v / (1 - beta2^t) over all entries there are:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  with amsgrad, w = max(w, v) takes its place, also in V
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u - lr / sqrt(V) weight_decay p

    So that its share in a step does not shrink when gradients do. Wants a much smaller weight decay than AdamW, 5e-4
    and less. V counts the parameters that have a gradient. State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w)
    with amsgrad.

    sqrt(V) is at least eps here, so that no gradient at all is no division by 0; otherwise this is the authors' code.
    pytorch_optimizer adds eps to it.

    Source:
        Xie et al., On the Overlooked Pitfalls of Weight Decay and How to Mitigate Them, arXiv 2011.11152;
        zeke-xie/stable-weight-decay-regularization.
    """

    names = (Name("adams"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v; least sqrt(V)", above=0.0, excluded="divides by 0")
    weight_decay: float = hyper(1e-4, "stable weight decay")
    amsgrad: bool = hyper(False, "divide by the largest v so far (AMSGrad)")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adams_amsgrad if group["amsgrad"] else adams
