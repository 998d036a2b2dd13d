"""DAdaptSGD: SGD with a step size from D-Adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, clone
from hfoptim.optimizers.shared.distance import (
    FSDP_IN_USE,
    GROWTH_RATE,
    LR_FACTOR,
    DAdaptation,
    estimate,
    exact_zeros,
    grown,
)


def _per_step(t: int, group: Group, dlr: Any, **sums: Tensor) -> Scalars:
    return {"dlr": dlr, "share": 1.0 - group["momentum"], "lr": 1.0}


def _decayed(grad: Any, param: Any, h: Any) -> Any:
    return grad + param * h.weight_decay


def _sums(grad: Any, param: Any, s: Any, x0: Any, h: Any) -> dict[str, Any]:
    # The step size of the first step follows from a sum of its own, so what is wanted of s after a step is put
    # together from sums before it.
    own = _decayed(grad, param, h)
    return {
        "first": (grad * grad).sum(),
        "gradients": (own * own).sum(),
        "mixed": (own * s).sum(),
        "sums": (s * s).sum(),
    }


def _dadapt_sgd(grad: Any, param: Any, s: Any, x0: Any, h: Any) -> tuple[Any, Any, None]:
    s = s + _decayed(grad, param, h) * h.dlr
    return (param - x0 + s) * h.share, s, None


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    norm = torch.where(state["g0_norm"] > 0, state["g0_norm"], totals["first"].sqrt())
    dlr = torch.where(norm > 0, state["d"] * float(group["lr"]) / norm, 0.0)
    numerator = state["numerator_weighted"] + dlr * totals["mixed"]
    size = totals["sums"] + 2.0 * dlr * totals["mixed"] + dlr * dlr * totals["gradients"]
    d_hat = torch.where(size > 0, 2.0 * numerator / size.sqrt(), state["d"])
    return {
        "dlr": dlr,
        "d": grown(state, d_hat, group["growth_rate"]),
        "numerator_weighted": numerator,
        "g0_norm": norm,
        "k": state["k"] + 1,
    }


class DAdaptSGD(DAdaptation):
    """SGD that finds its step size by D-Adaptation: leave lr at 1.

    With g the gradient, weight_decay p in it, p the parameter, p0 where it started, G the norm of all first gradients
    (without weight decay), sums over all entries of all parameters:

        a = d lr / G
        r = r + a <g, s>;  s = s + a g
        d = max(d, min(2 r / |s|_2, growth_rate d))
        p = p - (1 - momentum) (p - p0 + s)

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. State: `s`, `x0` (p0); every group holds `d`, `numerator_weighted` (r), `g0_norm` (G) and `k`. A state_dict
    of dadaptation loads.

    Follows dadaptation 3.2, but for these: there all groups have the weight decay of the first, gradients that are all
    0 at first end in a division by zero, and a group with lr=0 moves on to its s.

    Source:
        Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, arXiv 2301.07733;
        facebookresearch/dadaptation.
    """

    decay = Decay.INSIDE
    names = (Name("dadapt_sgd"),)
    rule = Rule(_dadapt_sgd, ELEMENT, {"s": exact_zeros, "x0": clone}, _per_step, Probe(_sums), exact_weights=True)
    run_state = estimate(
        _advance, ("first", "gradients", "mixed", "sums"), ("growth_rate",), numerator_weighted=0.0, g0_norm=0.0
    )
    peer_state = {"z": None}
    lr: float = LR_FACTOR
    momentum: float = hyper(0.0, "share of its place that a parameter keeps in a step", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
    _: KW_ONLY
    growth_rate: float = GROWTH_RATE
    fsdp_in_use: bool = FSDP_IN_USE
