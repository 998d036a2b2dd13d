"""DAdaptAdan: Adan with a step size from D-Adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, add_scaled, ema, nonnegative, zeros
from hfoptim.optimizers.shared.distance import GROWTH_RATE, LR_FACTOR, DAdaptation, estimate, exact_zeros, grown


def _rates(t: int, group: Group, dlr: Any) -> Scalars:
    _, beta2, beta3 = group["betas"]
    # At the first step there is no gradient before, so no difference.
    ahead = 0.0 if t == 1 else beta2
    return {"ahead": ahead, "alpha3": 1.0 - beta3, "beta3": beta3, "weight": dlr * (1.0 - beta3), "eps": group["eps"]}


def _probing(t: int, group: Group) -> Scalars:
    return _rates(t, group, group["d"] * float(group["lr"]))


def _per_step(t: int, group: Group, dlr: Any, **sums: Tensor) -> Scalars:
    beta1, beta2, _ = group["betas"]
    decay = dlr * float(group["weight_decay"])
    return {
        **_rates(t, group, dlr),
        "beta1": beta1,
        "entering": dlr * (1.0 - beta1),
        "beta2": beta2,
        "changing": dlr * (0.0 if t == 1 else 1.0 - beta2),
        "lr": 1.0,
        # Dividing by 1 + x is a decay by x / (1 + x).
        "decay": decay if group["no_prox"] else decay / (1.0 + decay),
    }


def _second(grad: Any, exp_avg_sq: Any, change: Any, h: Any) -> Any:
    return ema(exp_avg_sq, add_scaled(grad, change, h.ahead).square(), h.alpha3)


def _new_s(grad: Any, s: Any, h: Any) -> Any:
    return s * h.beta3 + grad * h.weight


def _sums(grad: Any, param: Any, exp_avg: Any, exp_avg_diff: Any, exp_avg_sq: Any, *args: Any) -> dict[str, Any]:
    pre_grad, s, h = args
    root = _second(grad, exp_avg_sq, grad - pre_grad, h).sqrt() + h.eps
    s = _new_s(grad, s, h)
    return {"gradients": (grad * grad / root).sum(), "sums": (s * s / root).sum(), "size": s.abs().sum()}


def _dadapt_adan(
    grad: Any, param: Any, exp_avg: Any, exp_avg_diff: Any, exp_avg_sq: Any, *args: Any
) -> tuple[Any, ...]:
    pre_grad, s, h = args
    change = grad - pre_grad
    exp_avg = exp_avg * h.beta1 + grad * h.entering
    exp_avg_diff = exp_avg_diff * h.beta2 + change * h.changing
    exp_avg_sq = _second(grad, exp_avg_sq, change, h)
    update = (exp_avg + exp_avg_diff * h.beta2) / (exp_avg_sq.sqrt() + h.eps)
    return update, exp_avg, exp_avg_diff, exp_avg_sq, grad, _new_s(grad, s, h)


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    beta3, dlr = group["betas"][2], state["d"] * float(group["lr"])
    gradients = beta3 * state["gsq_weighted"] + totals["gradients"] * dlr * dlr * (1.0 - beta3)
    known = totals["size"] > 0
    d_hat = torch.where(known, (totals["sums"] / (1.0 - beta3) - gradients) / totals["size"], state["d"])
    return {
        "dlr": torch.where(known, dlr, 0.0),
        "d": grown(state, d_hat, group["growth_rate"]),
        "gsq_weighted": gradients,
        "k": state["k"] + 1,
    }


class DAdaptAdan(DAdaptation):
    """Adan that finds its step size by D-Adaptation: leave lr at 1.

    With g the gradient, g' the one before (at the first step g), p the parameter, w = sqrt(n) + eps, sums over all
    entries of all parameters:

        a = d lr
        m = beta1 m + (1 - beta1) a g
        c = beta2 c + (1 - beta2) a (g - g')
        n = beta3 n + (1 - beta3) (g + beta2 (g - g'))^2
        s = beta3 s + (1 - beta3) a g
        r = beta3 r + (1 - beta3) a^2 <g, g / w>
        d = max(d, min((<s, s / w> / (1 - beta3) - r) / |s|_1, growth_rate d))
        p = (p - (m + beta2 c) / w) / (1 + a weight_decay)
        p = p - (m + beta2 c) / w - a weight_decay p              (no_prox)

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. State: `exp_avg` (m), `exp_avg_diff` (c), `exp_avg_sq` (n), `pre_grad` (g'), `s`; every group holds `d`,
    `gsq_weighted` (r) and `k`. A state_dict of dadaptation loads.

    Follows dadaptation 3.2, where lr is that of the first group. pytorch_optimizer 4.1 takes the first gradient itself
    for the first difference, and squares the squared difference.

    Source:
        Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, arXiv 2301.07733;
        facebookresearch/dadaptation; Xie et al., Adan, arXiv 2208.06677.
    """

    # The proximal step decays what the update has left.
    decay = Decay.DECOUPLED_AFTER
    decoupled_by = "no_prox"
    counted = True
    names = (Name("dadapt_adan"),)
    rule = Rule(
        _dadapt_adan,
        ELEMENT,
        {
            "exp_avg": zeros,
            "exp_avg_diff": zeros,
            "exp_avg_sq": nonnegative,
            "pre_grad": zeros,
            "s": exact_zeros,
        },
        _per_step,
        Probe(_sums, _probing),
    )
    run_state = estimate(_advance, ("gradients", "sums", "size"), ("betas", "growth_rate"), gsq_weighted=0.0)
    lr: float = LR_FACTOR
    betas: tuple[float, float, float] = hyper((0.98, 0.92, 0.99), "decay rates of m, c and n")
    eps: float = hyper(1e-8, "added to the root of n", above=0.0)
    weight_decay: float = hyper(0.02, "decoupled weight decay, per step and unit of step size")
    no_prox: bool = hyper(False, "decay as AdamW does, instead of the proximal step")
    _: KW_ONLY
    growth_rate: float = GROWTH_RATE
