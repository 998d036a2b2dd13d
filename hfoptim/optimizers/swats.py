"""SWATS: Adam first, gradient descent from when its step size is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    RuleOptimizer,
    RunState,
    Scalars,
    hyper,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.engine.rule import Probe, bias_correction
from hfoptim.optimizers.shared.moments import folded, moments_step


def _switch(state: Mapping[str, Any], totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    """Whether the next step is one of gradient descent, and its step size for each unit of lr.

    The first of these steps takes lr times `rate` then: what a schedule makes of lr goes on.
    """
    k, beta2 = state["k"] + 1, group["betas"][1]
    adam, known = state["sgd"] == 0.0, totals["product"] != 0.0
    found = totals["square"] / torch.where(known, totals["product"], 1.0)
    average = torch.where(known & adam, state["average"] + (found - state["average"]) * (1.0 - beta2), state["average"])
    settled = average / bias_correction(beta2, k)
    close = known & adam & (abs(settled - found) < group["eps"]) & (settled > 0.0)
    switches = close & (k > 1)
    lr = float(group["lr"]) or 1.0
    return {
        "k": k,
        "average": average,
        "sgd": torch.where(switches, 1.0, state["sgd"]),
        "rate": torch.where(switches, settled / lr, state["rate"]),
        "descends": state["sgd"],
        "rate_now": state["rate"],
    }


def _per_step(t: int, group: Group, descends: Any, rate_now: Any, **totals: Any) -> Scalars:
    adam, (beta1, _) = folded(t, group), group["betas"]
    return {
        **adam,
        "adam_rate": adam["lr"] * (1.0 - descends),
        "momentum": beta1,
        "descends": descends,
        "sgd_rate": float(group["lr"]) * (1.0 - beta1) * rate_now,
        "lr": 1.0,
    }


def _sums(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, momentum_buffer: Any, h: Any) -> dict[str, Any]:
    """Of Adam's step s and the gradient g: |s|^2 and s . g."""
    step = moments_step(grad, param, exp_avg, exp_avg_sq, h)[0] * h.lr
    return {"square": step.square().sum(), "product": (step * grad).sum()}


@rule(
    ELEMENT,
    per_step=_per_step,
    probe=Probe(_sums, folded),
    exp_avg=zeros,
    exp_avg_sq=nonnegative,
    momentum_buffer=zeros,
)
def swats(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, momentum_buffer: Any, h: Any) -> tuple[Any, ...]:
    """Adam's step or the momentum's: the rate of the other one is 0."""
    update, exp_avg, exp_avg_sq = moments_step(grad, param, exp_avg, exp_avg_sq, h)
    momentum_buffer = (momentum_buffer * h.momentum + grad) * h.descends
    return update * h.adam_rate + momentum_buffer * h.sgd_rate, exp_avg, exp_avg_sq, momentum_buffer


class SWATS(RuleOptimizer):
    """Adam, until the step size with which gradient descent would take its steps has settled; then gradient descent.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        s = lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p = p - s
        r = |s|^2 / (s . g)                             (over all parameters)
        a = beta2 a + (1 - beta2) r

    until |a / (1 - beta2^t) - r| < eps after the second step or a later one, with a above 0. From then on, with
    R = a / (1 - beta2^t) of that step and b = 0 at first:

        b = beta1 b + g
        p = p - (1 - beta1) R b

    R goes on with lr: after the switch it is multiplied by lr over what lr was at the switch. State: `exp_avg` (m),
    `exp_avg_sq` (v), `momentum_buffer` (b); in the groups `sgd` (1.0 after the switch), `rate` (R / lr), `average` (a).

    Follows the paper, whose p is all parameters. Mrpatekful/swats and pytorch_optimizer estimate R for each tensor, and
    the first that settles (the last one, in pytorch_optimizer) switches its group and writes its own R into the group's
    lr, where a schedule overwrites it.

    Source:
        Keskar and Socher, arXiv 1712.07628, algorithm 1.
    """

    rule = swats
    decay = Decay.COUPLED
    names = (Name("swats"),)
    run_state = RunState(
        {"k": 0, "average": 0.0, "sgd": 0.0, "rate": 0.0},
        _switch,
        totals=("square", "product"),
        shared=True,
        common=("betas", "eps"),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m, b, and of v, a")
    eps: float = hyper(1e-9, "added to the root of v; how near to its average r is to be")
    weight_decay: float = hyper(0.0, "L2 penalty")
