"""Positive-negative momentum (arXiv 2103.17182): two momenta of every other gradient, one less the other."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import Scalars
from hfoptim.engine.rule import add_scaled, ema


def turns(t: int, beta1: float, mix: float) -> Scalars:
    """What the gradient weighs in either momentum, and they in the step: one moves at odd steps, one at even ones."""
    odd, alpha, noise = t % 2 == 1, 1.0 - beta1 * beta1, math.hypot(1.0 + mix, mix)
    ahead, behind = (1.0 + mix) / noise, -mix / noise
    return {
        "alpha_odd": alpha if odd else 0.0,
        "alpha_even": 0.0 if odd else alpha,
        "weight_odd": ahead if odd else behind,
        "weight_even": behind if odd else ahead,
    }


def two_momenta(grad: Any, odd: Any, even: Any, h: Any) -> tuple[Any, Any, Any]:
    """The step, and both momenta with the gradient in one of them."""
    odd, even = ema(odd, grad, h.alpha_odd), ema(even, grad, h.alpha_even)
    return add_scaled(odd * h.weight_odd, even, h.weight_even), odd, even
