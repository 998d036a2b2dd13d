"""Amos: step sizes and weight decay that follow from the scale that parameters are expected to have."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Size, Tensor

from hfoptim.engine import (
    TENSOR,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    State,
    bias_correction,
    ema,
    hyper,
    scalar,
    zeros,
)


def _per_step(t: int, group: Group) -> Scalars:
    lr = float(group["lr"])
    scalars = {
        "lr": 1.0,  # it is in the update
        "alpha": 1.0 - group["beta"],
        "alpha1": 1.0 - group["momentum"],
        "correction": bias_correction(group["beta"], t),
        "eps": group["eps"],
        "lr_sq": lr * lr,
        "own_lr": lr,
        "c": group["c_coef"] * math.sqrt(lr),
        "d": group["d_coef"],
        "extra_l2": group["extra_l2"],
    }
    return scalars if group["eta"] is None else {**scalars, "eta": group["eta"]}


def _expected(shape: Size) -> float:
    """The scale of the entries of a parameter of that shape."""
    return 0.5 if len(shape) < 2 else math.sqrt((2.0 if len(shape) == 2 else 1.0) / max(1, shape[1]))


def _scale(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full((), _expected(param.shape), dtype=dtype, device=param.device)


@cache
def amos(by_shape: bool, momentum: bool) -> Rule:
    """The rule, with a scale that follows from the shape or is given, and with or without momentum."""

    def fn(grad: Any, param: Any, exp_avg_sq: Any, decay: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        mean_square = grad.square().mean()
        exp_avg_sq = ema(exp_avg_sq, mean_square, h.alpha)
        inverse = h.correction / exp_avg_sq.clamp(min=h.eps)
        own_lr = (state[0] if by_shape else h.eta) * h.own_lr
        shrink = (decay * h.c + 1.0).rsqrt() * inverse * mean_square * h.lr_sq
        damping = (decay * (own_lr**0.5 * h.d) + 1.0).reciprocal()
        update = grad * (inverse.sqrt() * own_lr * damping) + param * ((shrink * 0.5 + h.extra_l2) * damping)
        new = [exp_avg_sq, decay + shrink * (decay + 1.0), *([None] if by_shape else [])]
        if not momentum:
            return update, *new
        update = ema(state[-1], update, h.alpha1)
        return update, *new, update

    fn.__name__ = "amos"
    state = {"exp_avg_sq": scalar, "decay": scalar}
    scale = {"eta": State(_scale, signed=False)} if by_shape else {}
    return Rule(fn, TENSOR, {**state, **scale, **({"exp_avg": zeros} if momentum else {})}, _per_step)


class Amos(RuleOptimizer):
    """Adam-like steps with a decay of lr and of weights towards the scale that parameters are expected to have.

    With g the gradient, p the parameter, t the step:

        v = beta v + (1 - beta) mean(g^2);            r = (1 - beta^t) / max(v, eps)
        c = lr^2 r mean(g^2) / sqrt(1 + c_coef sqrt(lr) b)
        d = 1 / (1 + d_coef sqrt(lr eta) b)
        u = d ((c / 2 + extra_l2) p + lr eta sqrt(r) g)
        b = b + c (1 + b)
        m = momentum m + (1 - momentum) u             (momentum 0: m = u)
        p = p - m - lr weight_decay p

    eta is the root mean square that the trained entries of p are expected to have. Unless it is given, in groups, it
    follows from the shape: 1/2 for vectors, sqrt(2 / n) for matrices and sqrt(1 / n) for more dimensions, n the size of
    the second. lr decays by itself and wants no schedule; the paper has 1 / sqrt(batches in an epoch).

    State, one number each: `exp_avg_sq` (v), `decay` (b), `eta`; with momentum `exp_avg` (m).

    Follows the author's code, v and b of one number per tensor. pytorch_optimizer 4.1 has eta by the shape alone, and
    takes half of extra_l2 with the wrong sign, so that weights grow.

    Raises:
        TypeError: a complex parameter.

    Source:
        Tian and Parikh, Amos: An Adam-style Optimizer with Adaptive Weight Decay towards Model-Oriented Scale,
        arXiv 2210.11693; google-research/jestimator.
    """

    names = (Name("amos"),)
    lr: float = hyper(1e-3, "learning rate, relative to eta")
    beta: float = hyper(0.999, "decay rate of v", below=1.0)
    momentum: float = hyper(0.0, "decay rate of m", below=1.0)
    extra_l2: float = hyper(0.0, "weight decay beside the one that follows")
    c_coef: float = hyper(0.25, "coefficient of the decay of c")
    d_coef: float = hyper(0.25, "coefficient of the decay of the step")
    eps: float = hyper(1e-18, "least v", above=0.0)
    eta: float | None = hyper(None, "expected scale of the entries; None goes by the shape", above=0.0)
    _: KW_ONLY
    weight_decay: float = hyper(0.0, "decoupled weight decay beside the method's own, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return amos(group["eta"] is None, group["momentum"] != 0.0)
