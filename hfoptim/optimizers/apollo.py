"""Apollo: a diagonal quasi-Newton method."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Decay, Group, Name, Rule, RuleOptimizer, Scalars, bias_correction, ema, hyper, zeros
from hfoptim.engine.rule import add_scaled

# Least absolute curvature that is divided by, with the rebound "constant".
_LEAST = 0.01


def _per_step(t: int, group: Group) -> Scalars:
    alpha = (1.0 - group["beta"]) / bias_correction(group["beta"], t)
    lr, begin, eps = float(group["lr"]), group["init_lr"], group["eps"]
    if t <= group["warmup"]:
        begin = lr / 1000.0 if begin is None else begin
        lr = begin + (lr - begin) * (t - 1) / group["warmup"]
    constant = group["rebound"] == "constant"
    scalars = {"lr": lr, "alpha": alpha, "eps": eps / _LEAST if constant else eps, "inside": group["weight_decay"]}
    return scalars if constant else {**scalars, "eps_belief": eps / alpha}


@cache
def apollo(belief: bool, decay: str) -> Rule:
    """The rule with the rebound "belief" or "constant", and a kind of weight decay."""

    def fn(grad: Any, param: Any, exp_avg: Any, hessian: Any, step: Any, h: Any) -> tuple[Any, ...]:
        change = grad - exp_avg
        exp_avg = ema(exp_avg, grad, h.alpha)
        # The secant equation of the last step, met by the least change of the diagonal.
        length = step.norm(4) + h.eps
        step = step / length
        squared = step * step
        along = (change * step).sum() / length
        hessian = hessian - squared * (along * h.alpha + (hessian * squared).sum())
        if belief:
            divisor = torch.maximum(hessian.abs(), change.abs().amax()) + h.eps_belief
        else:
            divisor = hessian.abs().clamp(min=_LEAST)
        step = exp_avg / divisor
        if decay == "decoupled":
            step = add_scaled(step, param, h.inside)
        elif decay == "stable":
            step = step + param * (h.inside / divisor.mean())
        return step, exp_avg, hessian, step

    fn.__name__ = "apollo"
    return Rule(fn, TENSOR, {"exp_avg_grad": zeros, "approx_hessian": zeros, "update": zeros}, _per_step)


class Apollo(RuleOptimizer):
    """Quasi-Newton method with a diagonal of the Hessian that follows from how gradients change.

    With g the gradient, p the parameter, t the step, m' the m before, |.|4 the fourth root of the sum of fourth powers:

        a = (1 - beta) / (1 - beta^t)
        m = m' + a (g - m')
        d = u / (|u|4 + eps)                                       (u: the step before, at first 0)
        B = B - (a sum((g - m') d) / (|u|4 + eps) + sum(B d^2)) d^2
        u = m / max(|B|, 0.01)                                     ("constant", with eps / 0.01 as eps)
        u = m / (max(|B|, max|g - m'|) + eps / a)                  ("belief")
        p = p - lr u

    Weight decay is "L2", g = g + weight_decay p; "decoupled", u = u + weight_decay p; or "stable", the same divided by
    the mean of what m was divided by. All are seen by the next B. In the first `warmup` steps lr goes from init_lr to
    lr, in a straight line that begins with init_lr itself.

    State: `exp_avg_grad` (m), `approx_hessian` (B), `update` (u). APOLLO of 2024 is another one, AdamW with scales
    from a projection of low rank (transformers' `apollo_adamw`).

    Follows the author's code, but for the warm-up, which goes towards lr as it is at the time, there towards the one
    given to the constructor. pytorch_optimizer 4.1 warms up one step ahead; jettify's torch_optimizer has the first
    version of the paper, without rebound.

    Raises:
        TypeError: a complex parameter.

    Source:
        Ma, arXiv 2009.13586; XuezheMax/apollo.
    """

    names = (Name("apollo", aliases=("apollodqn",)),)
    lr: float = hyper(1e-2, "learning rate")
    beta: float = hyper(0.9, "decay rate of m", below=1.0)
    eps: float = hyper(1e-4, "added to the norm of u", above=0.0, excluded="would divide by 0")
    rebound: str = hyper("constant", "what bounds B from below", choices=("constant", "belief"))
    warmup: int = hyper(500, "steps of the warm-up", low=0)
    init_lr: float | None = hyper(None, "learning rate of the first step; None is lr / 1000")
    weight_decay: float = hyper(0.0, "weight decay, of the kind below")
    weight_decay_type: str | None = hyper(
        None,
        'kind of weight decay; None is "L2" with the rebound "constant", else "decoupled"',
        choices=("L2", "decoupled", "stable"),
    )

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.COUPLED if _decay(group) == "L2" else Decay.INSIDE

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return apollo(group["rebound"] == "belief", _decay(group))


def _decay(group: Group) -> str:
    return group["weight_decay_type"] or ("L2" if group["rebound"] == "constant" else "decoupled")
