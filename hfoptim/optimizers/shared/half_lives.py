"""Warm-ups of a decay rate that let the time in which an average halves grow linearly."""

from __future__ import annotations

import math
from collections.abc import Mapping

# The authors' code adds this to a beta before taking its logarithm.
_LOG_EPS = 1e-8


def slower_beta(first: float, last: float, share: float) -> float:
    """The decay rate on its way from `first` to `last`, after a share of the warm-up."""
    return math.exp(1.0 / ((1.0 - share) / math.log(first + _LOG_EPS) + share / math.log(last + _LOG_EPS)))


def check_warmup(betas: Mapping[str, float], warmup: str) -> None:
    """Raise if one of the decay rates of a warm-up is too close to 1 for its logarithm.

    Args:
        betas: the rates, by what they are called.
        warmup: what the option of the warm-up is called.
    """
    for name, beta in betas.items():
        if beta + _LOG_EPS >= 1.0:
            raise ValueError(
                f"{name}={beta!r} is too close to 1 for a warm-up, which takes its logarithm; give less than "
                f"{1.0 - _LOG_EPS!r} or {warmup}=None"
            )
