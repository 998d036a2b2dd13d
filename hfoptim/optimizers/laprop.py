"""LaProp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, RunState, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Rule, add_scaled, bias_correction, ema, zeros
from hfoptim.optimizers.shared.moments import adam_state, moment_rates
from hfoptim.optimizers.shared.peer_flags import TIMM_DECAY


def _average(state: Group, totals: Mapping[str, Tensor], group: Group) -> Scalars:
    average, beta1 = state["exp_avg_lr"], group["betas"][0]
    return {"k": state["k"] + 1, "exp_avg_lr": average + (float(group["lr"]) - average) * (1.0 - beta1)}


def _per_step(t: int, group: Group) -> Scalars:
    """The bias correction c2 of v as a factor of the numbers there are:  g / (sqrt(v / c2) + eps)
    =  sqrt(c2) g / (sqrt(v) + eps sqrt(c2))."""
    beta1, beta2 = group["betas"]
    lr, rates = float(group["lr"]), moment_rates(t, group)
    root = math.sqrt(bias_correction(beta2, t))
    # For a parameter that joined later, the average that its own steps would have at a constant lr.
    average = group["exp_avg_lr"] * bias_correction(beta1, t) / bias_correction(beta1, group["k"])
    return {
        "alpha2": rates["alpha2"],
        "beta1": beta1,
        "weight": lr * rates["alpha1"] * root,
        "centered": float(t > group["steps_before_using_centered"]),
        "eps": group["eps"] * root,
        "lr": lr / average if average else 0.0,
    }


@cache
def laprop(amsgrad: bool, centered: bool) -> Rule:
    """The rule, with the largest second moment so far, and with that of the gradient's distance from its mean."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        *more, h = args
        exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
        divisor, kept = exp_avg_sq, []
        if centered:
            mean = ema(more[0], grad, h.alpha2)
            divisor, kept = add_scaled(divisor, mean * mean, -h.centered).clamp(min=0.0), [mean]
        if amsgrad:
            # Before there is centering the largest moment stays 0.
            largest = torch.maximum(more[-1], divisor * h.centered) if centered else torch.maximum(more[-1], divisor)
            divisor, kept = torch.maximum(largest, divisor), [*kept, largest]
        # Momentum of steps that are normalised and multiplied by lr already.
        exp_avg = add_scaled(exp_avg * h.beta1, grad / (divisor.sqrt() + h.eps), h.weight)
        return exp_avg, exp_avg, exp_avg_sq, *kept

    fn.__name__ = "laprop"
    mean = {"exp_mean_avg_beta2": zeros} if centered else {}
    first, second, *largest = adam_state(amsgrad).items()
    return Rule(fn, ELEMENT, {**dict([first, second]), **mean, **dict(largest)}, _per_step)


class LaProp(RuleOptimizer):
    """Adam with the order changed: gradients are normalised first, and momentum averages what comes of it.

    With g the gradient, p the parameter, t the step:

        v = beta2 v + (1 - beta2) g^2
        m = beta1 m + (1 - beta1) lr g / (sqrt(v / (1 - beta2^t)) + eps)
        a = beta1 a + (1 - beta1) lr
        p = p - lr / a m
        p = p - lr weight_decay p

    With `centered`, after steps_before_using_centered steps, v - n^2 takes the place of v in m, where n is the average
    of g as v is that of g^2; with `amsgrad` the largest one so far of what would stand there.

    a is lr (1 - beta1^t) while lr is constant. It is kept once per group (`exp_avg_lr`, beside `k`, its steps). A
    parameter with fewer steps than its group gets the bias correction of its own steps with the group's average.

    State: `exp_avg` (m), `exp_avg_sq` (v), `exp_mean_avg_beta2` (n) with centered, `max_exp_avg_sq` with amsgrad; a
    state_dict of timm's LaProp loads.

    Follows timm, which keeps a in float32, 5e-8 away, and for what timm has no option the author's code. That decays by
    weight_decay p, whatever lr is.
    pytorch_optimizer divides by (sqrt(v + 1e-15) + eps) / sqrt(1 - beta2^t).

    Source:
        Ziyin, Wang and Ueda, arXiv 2002.04839; Z-T-WANG/LaProp-Optimizer; timm 1.0, `timm.optim.LaProp`.
    """

    decay = Decay.DECOUPLED_AFTER
    run_state = RunState({"k": 0, "exp_avg_lr": 0.0}, _average)
    absent_from_peers = frozenset({"k", "exp_avg_lr"})
    peer_flags = TIMM_DECAY
    peer_state = {"exp_avg_lr_1": None, "exp_avg_lr_2": None}
    names = (
        Name("laprop"),
        Name("claprop", "LaProp with caution", options={"caution": True}),
        Name("lapropc", "LaProp with decay that falls with the square of lr", options={"corrected_weight_decay": True}),
    )
    lr: float = hyper(4e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-15, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    amsgrad: bool = hyper(False, "divide by the largest v so far", in_peers=False)
    centered: bool = hyper(False, "divide by the gradient's spread around its mean", in_peers=False)
    steps_before_using_centered: int = hyper(10, "steps before the mean is taken away", low=0, in_peers=False)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return laprop(group["amsgrad"], group["centered"])

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # timm keeps the average of lr with every parameter; the oldest one's is the group's.
        if "exp_avg_lr_1" in state and int(state["step"]) > group["k"]:
            group |= {"k": int(state["step"]), "exp_avg_lr": float(state["exp_avg_lr_1"])}
        return state
