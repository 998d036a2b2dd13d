"""LaProp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, RunState, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, add_scaled, bias_correction, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import moment_rates
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
        "eps": group["eps"] * root,
        "lr": lr / average if average else 0.0,
    }


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def laprop(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum of steps that are normalised and multiplied by lr already."""
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    exp_avg = add_scaled(exp_avg * h.beta1, grad / (exp_avg_sq.sqrt() + h.eps), h.weight)
    return exp_avg, exp_avg, exp_avg_sq


class LaProp(RuleOptimizer):
    """Adam with the order changed: gradients are normalised first, and momentum averages what comes of it.

    With g the gradient, p the parameter, t the step:

        v = beta2 v + (1 - beta2) g^2
        m = beta1 m + (1 - beta1) lr g / (sqrt(v / (1 - beta2^t)) + eps)
        a = beta1 a + (1 - beta1) lr
        p = p - lr / a m
        p = p - lr weight_decay p

    a is lr (1 - beta1^t) while lr is constant. It is kept once per group (`exp_avg_lr`, beside `k`, its steps). A
    parameter with fewer steps than its group gets the bias correction of its own steps with the group's average.

    State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of timm's LaProp loads.

    Follows timm, which keeps a in float32, 5e-8 away. The author's code decays by weight_decay p, whatever lr is.
    pytorch_optimizer divides by (sqrt(v + 1e-15) + eps) / sqrt(1 - beta2^t).

    Source:
        Ziyin, Wang and Ueda, arXiv 2002.04839; Z-T-WANG/LaProp-Optimizer; timm 1.0, `timm.optim.LaProp`.
    """

    rule = laprop
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

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # timm keeps the average of lr with every parameter; the oldest one's is the group's.
        if "exp_avg_lr_1" in state and int(state["step"]) > group["k"]:
            group |= {"k": int(state["step"]), "exp_avg_lr": float(state["exp_avg_lr_1"])}
        return state
