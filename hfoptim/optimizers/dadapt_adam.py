"""DAdaptAdam: Adam with a step size from D-Adaptation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, ema, nonnegative, zeros
from hfoptim.optimizers.shared.distance import (
    FSDP_IN_USE,
    GROWTH_RATE,
    LR_FACTOR,
    DAdaptation,
    estimate,
    exact_zeros,
    rate,
    weighted,
)


def _sum_rates(group: Group, dlr: Any) -> Scalars:
    root = math.sqrt(group["betas"][1])
    return {"root": root, "pull": group["layer_scale"] * dlr, "weight": dlr * (1.0 - root), "eps": group["eps"]}


def _probing(t: int, group: Group) -> Scalars:
    return {**_sum_rates(group, group["d"] * rate(group)), "scale": group["layer_scale"]}


def _per_step(t: int, group: Group, dlr: Any, **sums: Tensor) -> Scalars:
    beta1, beta2 = group["betas"]
    return {
        **_sum_rates(group, dlr),
        "beta1": beta1,
        "entering": group["layer_scale"] * dlr * (1.0 - beta1),
        "alpha2": 1.0 - beta2,
        "lr": 1.0,
        "decay": dlr * float(group["weight_decay"]),
    }


def _new_s(grad: Any, s: Any, h: Any) -> Any:
    return s * h.root + grad * h.weight


def _sums(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, s: Any, h: Any) -> dict[str, Any]:
    return {
        "numerator": (grad * s / (exp_avg_sq.sqrt() + h.eps)).sum() * h.pull,
        "denominator": _new_s(grad, s, h).abs().sum() * h.scale,
    }


def _dadapt_adam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, s: Any, h: Any) -> tuple[Any, ...]:
    exp_avg = exp_avg * h.beta1 + grad * h.entering
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    return exp_avg / (exp_avg_sq.sqrt() + h.eps), exp_avg, exp_avg_sq, _new_s(grad, s, h)


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    return weighted(state, totals, group, rate(group))


class DAdaptAdam(DAdaptation):
    """Adam that finds its step size by D-Adaptation: leave lr at 1.

    With g the gradient, p the parameter, c the bias correction sqrt(1 - beta2^t) / (1 - beta1^t) with
    use_bias_correction, else 1, b = sqrt(beta2), l the group's layer_scale, sums over all entries of all parameters:

        a = d lr c
        r = b r + (1 - b) l a <g, s / (sqrt(v) + eps)>
        m = beta1 m + (1 - beta1) l a g;  v = beta2 v + (1 - beta2) g^2;  s = b s + (1 - b) a g
        d = max(d, min(r / ((1 - b) l |s|_1), growth_rate d))
        p = p - m / (sqrt(v) + eps) - a weight_decay p

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. State: `exp_avg` (m), `exp_avg_sq` (v), `s`; every group holds `d`, `numerator_weighted` (r) and `k`. A
    state_dict of dadaptation loads.

    Follows dadaptation 3.2, where a group with lr=0 still moves by the momentum it had.

    Source:
        Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, arXiv 2301.07733;
        facebookresearch/dadaptation.
    """

    decay = Decay.COUPLED
    decoupled_by = "decouple"
    counted = True
    names = (
        Name("dadapt_adam"),
        Name("dadapt_adamw", "DAdaptAdam with decoupled weight decay", options={"decouple": True}),
    )
    rule = Rule(
        _dadapt_adam,
        ELEMENT,
        {"exp_avg": zeros, "exp_avg_sq": nonnegative, "s": exact_zeros},
        _per_step,
        Probe(_sums, _probing),
    )
    run_state = estimate(
        _advance,
        ("numerator", "denominator"),
        ("betas", "use_bias_correction", "growth_rate"),
        numerator_weighted=0.0,
    )
    lr: float = LR_FACTOR
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v", above=0.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of step size")
    _: KW_ONLY
    decouple: bool = hyper(False, "decoupled weight decay; False adds it to the gradient")
    use_bias_correction: bool = hyper(False, "Adam's bias corrections")
    growth_rate: float = GROWTH_RATE
    layer_scale: float = hyper(1.0, "factor of a group's step size, in place of an lr of its own", above=0.0)
    fsdp_in_use: bool = FSDP_IN_USE
