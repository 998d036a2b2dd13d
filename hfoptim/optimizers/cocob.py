"""COCOB: coordinates that bet on their own gradients, without a learning rate."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    RuleOptimizer,
    Scalars,
    clone,
    hyper,
    nonnegative,
    rule,
    zeros,
)


def _per_step(t: int, group: Group) -> Scalars:
    return {"factor": float(group["lr"]), "alpha": group["alpha"], "eps": group["eps"], "lr": 1.0}


@rule(
    ELEMENT,
    per_step=_per_step,
    exact_weights=True,
    x0=clone,
    sum_negative_gradients=zeros,
    grad_norm_sum=nonnegative,
    L=nonnegative,
    reward=nonnegative,
)
def cocob(grad: Any, param: Any, x0: Any, total: Any, lengths: Any, largest: Any, reward: Any, h: Any) -> Any:
    """The bet: what has been won so far, as a share of it by the sum of all gradients."""
    grad = grad * h.factor
    size = grad.abs()
    largest = torch.maximum(largest, size).clamp(min=h.eps)
    total, lengths = total - grad, lengths + size
    reward = (reward - grad * (param - x0)).clamp(min=0.0)
    bet = total * (reward + largest) / (torch.maximum(lengths + largest, largest * h.alpha) * largest)
    return param - (x0 + bet), None, total, lengths, largest, reward


class COCOB(RuleOptimizer):
    """No learning rate: every coordinate bets what it has won on the sign of its next gradient.

    With g the gradient, weight_decay p in it, times lr, p the parameter, p0 where it started, all entry by entry:

        L = max(L, |g|), at first eps
        S = S - g,   G = G + |g|
        R = max(0, R - g (p - p0))
        p = p - (p - p0 - S (R + L) / (L max(G + L, alpha L)))

    Steps do not depend on the length of gradients; lr multiplies these, so that a schedule of it weighs later steps
    less.
    State: `x0` (p0), `sum_negative_gradients` (S), `grad_norm_sum` (G), `L`, `reward` (R).

    The numbers are the author's (parameterfree) and optax's. The author multiplies all groups by the largest lr of any;
    here each has its own.

    Source:
        Orabona and Tommasi, Training Deep Networks without Learning Rates Through Coin Betting, arXiv 1705.07795;
        bremen79/parameterfree; optax.contrib.cocob.
    """

    decay = Decay.COUPLED
    names = (Name("cocob"),)
    rule = cocob
    lr: float = hyper(1.0, "factor of the gradients")
    alpha: float = hyper(100.0, "about as many steps are a warm-up")
    eps: float = hyper(1e-8, "first value of L", above=0.0)
    weight_decay: float = hyper(0.0, "weight decay, added to the gradient")
