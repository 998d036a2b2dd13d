"""AvaGrad."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, RunState, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, bias_correction, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decay_options import Decoupling, decoupling
from hfoptim.optimizers.shared.moments import moment_rates


def _probing(t: int, group: Group) -> Scalars:
    # The author takes the moment from before this step and the bias correction from after it.
    return {"inverse": 1.0 / math.sqrt(bias_correction(group["betas"][1], t)), "eps": group["eps"]}


def _rates(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> dict[str, Any]:
    """The squared norm of all step sizes, and how many they are."""
    root = exp_avg_sq.sqrt() * h.inverse + h.eps
    return {"rate_sq": (1.0 / (root * root)).sum(), "entries": torch.ones_like(exp_avg_sq).sum()}


def _gamma(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    """The number for the next step; this one takes what the last one has left."""
    return {"gamma": (totals["entries"] / totals["rate_sq"]).sqrt(), "gamma_before": state["gamma"]}


def _per_step(t: int, group: Group, gamma_before: Any, **totals: Any) -> Scalars:
    beta1, beta2 = group["betas"]
    lr, rates = float(group["lr"]), moment_rates(t, group)
    # The first step has no second moment to divide by: it only makes one.
    moves = t > 1
    return {
        **rates,
        "inverse": 1.0 / math.sqrt(bias_correction(beta2, t - 1)) if moves else 0.0,
        "eps": group["eps"],
        "lr": gamma_before * (lr / bias_correction(beta1, t)) if moves else 0.0,
        "decay": lr * group["weight_decay"] if moves else 0.0,
    }


@rule(ELEMENT, per_step=_per_step, probe=Probe(_rates, _probing), exp_avg=zeros, exp_avg_sq=nonnegative)
def avagrad(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum over the root of the second moment of the gradients before this one."""
    exp_avg = ema(exp_avg, grad, h.alpha1)
    update = exp_avg / (exp_avg_sq.sqrt() * h.inverse + h.eps)
    return update, exp_avg, ema(exp_avg_sq, grad * grad, h.alpha2)


class AvaGrad(Decoupling):
    """Adam with the current gradient kept out of its second moment, and step sizes normalised over the whole model.

    With g the gradient, p the parameter, t the step, v' the v from before it, n the number of all entries:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        p = p - lr c m / (1 - beta1^t) / (sqrt(v' / (1 - beta2^(t - 1))) + eps)         (from the second step on)
        v = beta2 v + (1 - beta2) g^2
        c = sqrt(n) / |1 / (sqrt(v' / (1 - beta2^t)) + eps)|                            (for the next step)

    or with `weight_decouple`, g as it is, p - ... - lr weight_decay p, also from the second step on. Since c takes the
    size out of the step sizes, lr and eps can be searched one after the other: eps decides between SGD (large) and
    Adam, lr is near that of SGD.

    State: `exp_avg` (m), `exp_avg_sq` (v); `gamma` (c) in the groups.

    Follows the author's code, as pytorch_optimizer does, whose decay is decoupled by default and takes the first step,
    too. In the paper c has the v' of its own step in it, here that of the step before. c is one number for all groups,
    as in the paper; both codes have one per group.

    Source:
        Savarese et al., arXiv 1912.01823; lolemacs/avagrad.
    """

    rule = avagrad
    run_state = RunState({"gamma": 0.0}, _gamma, totals=("rate_sq", "entries"), shared=True)
    names = (
        Name("avagrad"),
        Name("avagradw", "AvaGrad with decoupled weight decay", options={"weight_decouple": True}),
    )
    lr: float = hyper(0.1, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    eps: float = hyper(0.1, "added to the bias-corrected root of v", above=0.0, excluded="would divide by 0 at first")
    _: KW_ONLY
    weight_decouple: bool = decoupling(False)
