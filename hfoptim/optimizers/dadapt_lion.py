"""DAdaptLion: Lion with a step size from D-Adaptation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, ema, zeros
from hfoptim.optimizers.shared.distance import FSDP_IN_USE, LR_FACTOR, DAdaptation, estimate, exact_zeros, weighted
from hfoptim.optimizers.shared.moments import moment_rates


def _rates(t: int, group: Group, dlr: Any) -> Scalars:
    root = math.sqrt(group["betas"][1])
    return {"alpha1": moment_rates(t, group)["alpha1"], "root": root, "weight": dlr * (1.0 - root), "dlr": dlr}


def _probing(t: int, group: Group) -> Scalars:
    return _rates(t, group, group["d"] * float(group["lr"]))


def _per_step(t: int, group: Group, dlr: Any, **sums: Tensor) -> Scalars:
    beta2 = group["betas"][1]
    own = {"beta2": beta2, "entering": dlr * (1.0 - beta2), "lr": dlr, "decay": dlr * float(group["weight_decay"])}
    return {**_rates(t, group, dlr), **own}


def _signs(grad: Any, exp_avg: Any, h: Any) -> Any:
    return ema(exp_avg, grad, h.alpha1).sign()


def _new_s(update: Any, s: Any, h: Any) -> Any:
    return s * h.root + update * h.weight


def _sums(grad: Any, param: Any, exp_avg: Any, s: Any, h: Any) -> dict[str, Any]:
    update = _signs(grad, exp_avg, h)
    return {"numerator": (update * s).sum() * h.dlr, "denominator": _new_s(update, s, h).abs().sum()}


def _dadapt_lion(grad: Any, param: Any, exp_avg: Any, s: Any, h: Any) -> tuple[Any, Any, Any]:
    update = _signs(grad, exp_avg, h)
    return update, exp_avg * h.beta2 + grad * h.entering, _new_s(update, s, h)


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    return weighted(state, totals, group, float(group["lr"]))


class DAdaptLion(DAdaptation):
    """Lion that finds its step size by D-Adaptation: leave lr at 1.

    With g the gradient, p the parameter, b = sqrt(beta2), sums over all entries of all parameters:

        a = d lr
        u = sign(beta1 m + (1 - beta1) g)
        r = b r + (1 - b) a <u, s>
        m = beta2 m + (1 - beta2) a g;  s = b s + (1 - b) a u
        d = max(d, r / ((1 - b) |s|_1))
        p = p - a u - a weight_decay p

    The groups share d, so they must agree in lr and in the options it depends on; a group with lr=0 is frozen and takes
    no part. State: `exp_avg` (m), `s`; every group holds `d`, `numerator_weighted` (r) and `k`. A state_dict of
    dadaptation loads.

    Follows dadaptation 3.2, whose authors call it experimental. There a group with lr=0 moves all the same.

    Source:
        Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, arXiv 2301.07733;
        facebookresearch/dadaptation.
    """

    names = (Name("dadapt_lion"),)
    rule = Rule(_dadapt_lion, ELEMENT, {"exp_avg": zeros, "s": exact_zeros}, _per_step, Probe(_sums, _probing))
    run_state = estimate(_advance, ("numerator", "denominator"), ("betas",), numerator_weighted=0.0)
    lr: float = LR_FACTOR
    betas: tuple[float, float] = hyper((0.9, 0.99), "interpolation weights of the update and of the momentum")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of step size")
    _: KW_ONLY
    fsdp_in_use: bool = FSDP_IN_USE
