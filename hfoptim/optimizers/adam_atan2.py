"""Adam-atan2: Adam without eps."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    TENSOR,
    Group,
    Name,
    Rule,
    Scalars,
    add_scaled,
    bias_correction,
    clone,
    hyper,
    nonnegative,
    zeros,
)
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import moment_rates, moments


def _per_step(t: int, group: Group) -> Scalars:
    """Both bias corrections as one factor of the second moment's root: the angle stays the same."""
    beta1, beta2 = group["betas"]
    stretch = group["b"] * bias_correction(beta1, t) / math.sqrt(bias_correction(beta2, t))
    back = group["regen_reg_rate"] / group["a"] / (group["max_lr"] if group["decouple_lr"] else 1.0)
    rates = {**moment_rates(t, group), "stretch": stretch, "lr": float(group["lr"]) * group["a"]}
    return {**rates, "against": group["cautious_factor"], "back": back}


@cache
def adam_atan2(cautious: bool, regenerates: bool) -> Rule:
    """The rule, with less of what points against the gradient, and with a pull to the first weights."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        *start, h = args
        exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
        update = exp_avg.atan2(exp_avg_sq.sqrt() * h.stretch)
        if cautious:
            share = torch.where(update * grad > 0, torch.ones_like(update), h.against)
            update = update * (share / share.mean().clamp(min=1e-5))
        if regenerates:
            update = add_scaled(update, param - start[0], h.back)
        return update, exp_avg, exp_avg_sq, *(None for _ in start)

    fn.__name__ = "adam_atan2"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative, **({"param_init": clone} if regenerates else {})}
    return Rule(fn, TENSOR if cautious else ELEMENT, state, _per_step)


class AdamAtan2(FullyDecoupling):
    """Adam with the angle of its two moments in place of their quotient: no eps, and steps of lr a pi / 2 at most.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        u = a atan2(m / (1 - beta1^t), b sqrt(v / (1 - beta2^t)))
        p = p - lr u - lr weight_decay p                        (decouple_lr: - lr / max_lr weight_decay p)

    With `cautious_factor` below 1, entries of u that point against g are multiplied by it, and all so that their mean
    factor is 1; at 0 this is `caution`. With `regen_reg_rate`, which lucidrains has in place of weight decay only,
    weights are pulled to where they started: - lr regen_reg_rate (p - p_0).

    Steps do not change when the loss is multiplied by a number, however small. State: `exp_avg` (m), `exp_avg_sq` (v),
    and with `regen_reg_rate` `param_init` (p_0).

    Follows lucidrains, whose a = 1.27 is 4 / pi: where m is sqrt(v), as at the first step, u is 1. `decoupled_wd` there
    is `decouple_lr` here, `cautious_wd` `cautious_weight_decay`.

    Source:
        Everett et al., Scaling Exponents Across Parameterizations and Optimizers, arXiv 2407.05872;
        lucidrains/adam-atan2-pytorch. regen_reg_rate: Kumar et al., arXiv 2308.11958.
    """

    names = (Name("adam_atan2"),)
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    a: float = hyper(1.27, "factor of the angle", above=0.0, excluded="would take no step")
    b: float = hyper(1.0, "factor of the second moment's root", above=0.0, excluded="would leave the sign alone")
    _: KW_ONLY
    regen_reg_rate: float = hyper(0.0, "pull to the first weights, per step and unit of lr")
    cautious_factor: float = hyper(1.0, "share of what points against the gradient that is kept", most=1.0)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adam_atan2(group["cautious_factor"] < 1.0, group["regen_reg_rate"] > 0.0)
