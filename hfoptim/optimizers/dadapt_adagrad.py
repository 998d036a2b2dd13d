"""DAdaptAdaGrad: Adagrad with a step size from D-Adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, clone
from hfoptim.optimizers.shared.distance import GROWTH_RATE, LR_FACTOR, DAdaptation, estimate, exact_zeros, grown
from hfoptim.optimizers.shared.filled import filled


def _rates(t: int, group: Group, dlr: Any) -> Scalars:
    return {"dlr": dlr, "eps": group["eps"]}


def _probing(t: int, group: Group) -> Scalars:
    return _rates(t, group, group["d"] * float(group["lr"]))


def _per_step(t: int, group: Group, dlr: Any, **sums: Tensor) -> Scalars:
    return {**_rates(t, group, dlr), "share": 1.0 - group["momentum"], "lr": 1.0}


def _stepped(grad: Any, alphak: Any, sk: Any, h: Any) -> tuple[Any, Any, Any]:
    """Both sums with the new gradient in them, and what it is divided by."""
    alphak = alphak + grad * grad
    return alphak, sk + grad * h.dlr, alphak.sqrt() + h.eps


def _sums(grad: Any, param: Any, alphak: Any, sk: Any, x0: Any, h: Any) -> dict[str, Any]:
    _, new, root = _stepped(grad, alphak, sk, h)
    return {
        "change": (new * new / root - sk * sk / (alphak.sqrt() + h.eps)).sum(),
        "change_l1": (new.abs() - sk.abs()).sum(),
        "gradients": (grad * grad / root).sum(),
    }


def _dadapt_adagrad(grad: Any, param: Any, alphak: Any, sk: Any, x0: Any, h: Any) -> tuple[Any, ...]:
    alphak, sk, root = _stepped(grad, alphak, sk, h)
    return (param - x0 + sk / root) * h.share, alphak, sk, None


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    dlr = state["d"] * float(group["lr"])
    weighted = state["sksq_weighted"] + totals["change"]
    size = state["skl1"] + totals["change_l1"]
    gradients = state["gsq_weighted"] + dlr * dlr * totals["gradients"]
    d_hat = torch.where(size > 0, (weighted - gradients) / size, state["d"])
    return {
        "dlr": dlr,
        "d": grown(state, d_hat, group["growth_rate"]),
        "gsq_weighted": gradients,
        "sksq_weighted": weighted,
        "skl1": size,
        "k": state["k"] + 1,
    }


class DAdaptAdaGrad(DAdaptation):
    """Adagrad that finds its step size by D-Adaptation: leave lr at 1.

    With g the gradient, weight_decay p in it, p the parameter, p0 where it started, w = sqrt(v) + eps, sums over all
    entries of all parameters:

        a = d lr
        v = v + g^2, at first 1e-6;  s = s + a g
        r = r + a^2 <g, g / w>
        d = max(d, min((<s, s / w> - r) / |s|_1, growth_rate d))
        p = p - (1 - momentum) (p - p0 + s / w)

    The authors recommend DAdaptAdam or DAdaptSGD: d grows more slowly here. The groups share d, so they must agree in
    lr and in the options it depends on; a group with lr=0 is frozen and takes no part. State: `alphak` (v), `sk` (s),
    `x0` (p0); every group holds `d`, `gsq_weighted` (r), `sksq_weighted` and `skl1` (both sums over s) and `k`. A
    state_dict of dadaptation loads. Gradients are dense, and parameters may be sharded.

    Follows dadaptation 3.2, where lr is that of the first group.

    Source:
        Defazio and Mishchenko, Learning-Rate-Free Learning by D-Adaptation, arXiv 2301.07733;
        facebookresearch/dadaptation.
    """

    decay = Decay.COUPLED
    names = (Name("dadapt_adagrad"),)
    rule = Rule(
        _dadapt_adagrad,
        ELEMENT,
        {"alphak": filled(1e-6), "sk": exact_zeros, "x0": clone},
        _per_step,
        Probe(_sums, _probing),
        exact_weights=True,
    )
    run_state = estimate(
        _advance,
        ("change", "change_l1", "gradients"),
        ("growth_rate",),
        gsq_weighted=0.0,
        sksq_weighted=0.0,
        skl1=0.0,
    )
    lr: float = LR_FACTOR
    momentum: float = hyper(0.0, "share of its place that a parameter keeps in a step", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
    eps: float = hyper(1e-6, "added to the root of v", above=0.0)
    _: KW_ONLY
    growth_rate: float = GROWTH_RATE
