"""DoG, LDoG and DoWG: SGD whose step size is the distance gone over the root of all squared gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, RunState, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, TENSOR, Probe, Rule, clone, scalar
from hfoptim.optimizers.shared.distance import LR_FACTOR


def _eta(t: int, group: Group, eta: Any, **sums: Tensor) -> Scalars:
    first = group["init_eta"] is not None and group["k"] == 1
    return {"lr": group["init_eta"] if first else eta * float(group["lr"])}


def _distances(grad: Any, param: Any, init_buffer: Any, h: Any) -> dict[str, Any]:
    gone = param - init_buffer
    return {"size": (param * param).sum(), "gone": (gone * gone).sum(), "gradients": (grad * grad).sum()}


def _dog(grad: Any, param: Any, init_buffer: Any, h: Any) -> tuple[Any, None]:
    return grad, None


def _advance(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    if state["k"] == 0:
        rbar = group["reps_rel"] * (1.0 + totals["size"].sqrt()) if group["init_eta"] is None else state["rbar"]
        squares = totals["gradients"] + group["eps"]
    else:
        rbar = torch.maximum(state["rbar"], totals["gone"].sqrt())
        squares = state["G"] + totals["gradients"]
    return {"eta": rbar / squares.sqrt(), "rbar": rbar, "G": squares, "k": state["k"] + 1}


def _weighted(state: Group, totals: Mapping[str, Tensor], group: Group) -> dict[str, Any]:
    distance = torch.maximum(state["estim_sq_dist"], totals["gone"])
    squares = state["weighted_sq_norm_grads"] + distance * totals["gradients"]
    eta = distance / (squares.sqrt() + group["eps"])
    return {"eta": eta, "estim_sq_dist": distance, "weighted_sq_norm_grads": squares}


def _weighted_eta(t: int, group: Group, eta: Any, **sums: Tensor) -> Scalars:
    return {"lr": eta * float(group["lr"])}


def _first_distance(options: Group) -> float:
    given = options["init_estim_sq_dist"]
    return float(options["eps"] if given is None else given)


def _layerwise(t: int, group: Group) -> Scalars:
    first = t == 1
    init_eta = group["init_eta"]
    return {
        "reps": group["reps_rel"] if first and init_eta is None else 0.0,
        "eps": group["eps"] if first else 0.0,
        "first_eta": init_eta if first and init_eta is not None else 0.0,
        "factor": float(group["lr"]),
        "lr": 1.0,
    }


def _norm(x: Any) -> Any:
    return (x * x).sum().sqrt()


def _ldog(grad: Any, param: Any, init_buffer: Any, rbar: Any, squares: Any, h: Any) -> tuple[Any, ...]:
    rbar = torch.maximum(torch.maximum(rbar, _norm(param - init_buffer)), (_norm(param) + 1.0) * h.reps)
    squares = squares + (grad * grad).sum() + h.eps
    return grad * (rbar / squares.sqrt() * h.factor + h.first_eta), None, rbar, squares


class DoG(RuleOptimizer):
    """SGD without a learning rate: the step is the largest distance gone so far over the root of all squared gradients.

    With g the gradient, weight_decay p in it, p the parameter, p0 where it started, norms over all entries of all
    parameters:

        r = max(r, |p - p0|), at first reps_rel (1 + |p0|);  G = G + |g|^2, at first eps
        p = p - lr r / sqrt(G) g

    The iterates should be averaged (the paper's polynomial decay averaging): the step does not decay by itself. A
    model with batch normalisation wants reps_rel=1e-4.

    All groups are one long vector, as in the paper; the author's class makes an estimate for each group, and `lr`
    multiplies it in both. State: `init_buffer` (p0); every group holds `rbar` (r), `G` and `k`, the steps.

    Source:
        Ivgi, Hinder and Carmon, DoG is SGD's Best Friend, arXiv 2302.12022; formll/dog.
    """

    decay = Decay.COUPLED
    names = (Name("dog"),)
    rule = Rule(_dog, ELEMENT, {"init_buffer": clone}, _eta, Probe(_distances), exact_weights=True)
    run_state = RunState(
        {"rbar": 0.0, "G": 0.0, "k": 0},
        _advance,
        ("size", "gone", "gradients"),
        shared=True,
        common=("reps_rel", "eps", "init_eta"),
    )
    lr_is_factor = True
    reps_rel: float = hyper(1e-6, "first distance, as a share of 1 + |p0|", above=0.0)
    lr: float = LR_FACTOR
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
    eps: float = hyper(1e-8, "added to the sum of squared gradients", above=0.0)
    init_eta: float | None = hyper(None, "first step size, in place of that from reps_rel", above=0.0)


class LDoG(RuleOptimizer):
    """DoG for each parameter by itself: its own distance gone over the root of its own squared gradients.

    With g the gradient, weight_decay p in it, p the parameter, p0 where it started, norms over the parameter:

        r = max(r, |p - p0|), at first reps_rel (1 + |p0|);  G = G + |g|^2, at first eps
        p = p - lr r / sqrt(G) g

    The iterates should be averaged (the paper's polynomial decay averaging): the step does not decay by itself. State:
    `init_buffer` (p0), `rbar` (r), `G`.

    Source:
        Ivgi, Hinder and Carmon, DoG is SGD's Best Friend, arXiv 2302.12022, section 3.3; formll/dog.
    """

    decay = Decay.COUPLED
    names = (Name("ldog"),)
    rule = Rule(_ldog, TENSOR, {"init_buffer": clone, "rbar": scalar, "G": scalar}, _layerwise, exact_weights=True)
    lr_is_factor = True
    reps_rel: float = hyper(1e-6, "first distance, as a share of 1 + |p0|", above=0.0)
    lr: float = LR_FACTOR
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
    eps: float = hyper(1e-8, "added to the sum of squared gradients", above=0.0)
    init_eta: float | None = hyper(None, "first step size, in place of that from reps_rel", above=0.0)


class DoWG(RuleOptimizer):
    """DoG with gradients weighted by the distance at their step: it steps on longer where the way has been long.

    With g the gradient, weight_decay p in it, p the parameter, p0 where it started, norms over all entries of all
    parameters:

        r2 = max(r2, |p - p0|^2), at first eps, or init_estim_sq_dist;  G = G + r2 |g|^2
        p = p - lr r2 / (sqrt(G) + eps) g

    All groups are one long vector, as in the paper; `lr` multiplies a group's step. State: `init_buffer` (p0); every
    group holds `estim_sq_dist` (r2) and `weighted_sq_norm_grads` (G). Follows optax, which has added the eps of the
    divisor.

    Source:
        Khaled, Mishchenko and Jin, DoWG Unleashed, arXiv 2305.16284; optax, `dowg`.
    """

    decay = Decay.COUPLED
    names = (Name("dowg"),)
    rule = Rule(_dog, ELEMENT, {"init_buffer": clone}, _weighted_eta, Probe(_distances), exact_weights=True)
    run_state = RunState(
        {"estim_sq_dist": _first_distance, "weighted_sq_norm_grads": 0.0},
        _weighted,
        ("gone", "gradients"),
        shared=True,
        common=("eps", "init_estim_sq_dist"),
    )
    lr_is_factor = True
    lr: float = LR_FACTOR
    init_estim_sq_dist: float | None = hyper(None, "first squared distance; None is eps", above=0.0)
    eps: float = hyper(1e-4, "added to the divisor", above=0.0)
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
