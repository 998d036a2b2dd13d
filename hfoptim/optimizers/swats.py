"""SWATS: Adam first, gradient descent from when its step size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    Group,
    Name,
    Probe,
    Rule,
    RunState,
    Scalars,
    add_scaled,
    bias_correction,
    hyper,
    zeros,
)
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import adam_state, folded, moments_step


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
        **fixed_decay(group),
        "lr": 1.0,
    }


def _sums(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, momentum_buffer: Any, *args: Any) -> dict[str, Any]:
    """Of Adam's step s and the gradient g: |s|^2 and s . g."""
    step = moments_step(grad, param, exp_avg, exp_avg_sq, *args)[0] * args[-1].lr
    return {"square": step.square().sum(), "product": (step * grad).sum()}


@cache
def swats(amsgrad: bool, nesterov: bool) -> Rule:
    """The rule, with AMSGrad before the switch and with Nesterov's momentum after it, or without."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, momentum_buffer: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        update, exp_avg, exp_avg_sq, *largest = moments_step(grad, param, exp_avg, exp_avg_sq, *args)
        # Adam's step or the momentum's: the rate of the other one is 0.
        momentum_buffer = (momentum_buffer * h.momentum + grad) * h.descends
        descent = add_scaled(grad, momentum_buffer, h.momentum) if nesterov else momentum_buffer
        return update * h.adam_rate + descent * h.sgd_rate, exp_avg, exp_avg_sq, momentum_buffer, *largest

    fn.__name__ = "swats"
    first, second, *largest = adam_state(amsgrad).items()
    state = dict([first, second, ("momentum_buffer", zeros), *largest])
    return Rule(fn, ELEMENT, state, _per_step, Probe(_sums, folded))


class SWATS(Decoupling):
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
        p = p - (1 - beta1) R b                         (nesterov: g + beta1 b in place of b)

    With `amsgrad` the largest v so far takes the place of v in s. With `weight_decouple`, before the switch and after,
    g as it is, and p - lr weight_decay p in place of p on the right (fixed_decay: p - weight_decay p).

    R goes on with lr: after the switch it is multiplied by lr over what lr was at the switch. State: `exp_avg` (m),
    `exp_avg_sq` (v), `momentum_buffer` (b), `max_exp_avg_sq` with amsgrad; in the
    groups `sgd` (1.0 after the switch), `rate` (R / lr), `average` (a).

    Follows the paper, whose p is all parameters. Mrpatekful/swats and pytorch_optimizer estimate R for each tensor, and
    the first that settles (the last one, in pytorch_optimizer) switches its group and writes its own R into the group's
    lr, where a schedule overwrites it. Their nesterov leaves out the factor 1 - beta1, and looks nowhere ahead.

    Source:
        Keskar and Socher, arXiv 1712.07628, algorithm 1.
    """

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
    weight_decay: float = hyper(0.0, "L2 penalty, or the coefficient of the decoupled decay")
    amsgrad: bool = hyper(False, "divide by the largest v so far")
    nesterov: bool = hyper(False, "look one step ahead after the switch")
    _: KW_ONLY
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return swats(group["amsgrad"], group["nesterov"])
