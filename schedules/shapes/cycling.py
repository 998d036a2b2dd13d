"""Shapes for cycles: a decay along the hyperbolic tangent, and decays that start late (k-decay)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import real_number, settle
from ..curves import Curve
from .basic import Timed

__all__ = ["KDecay", "Tanh"]


@dataclass(frozen=True)
class Tanh(Timed):
    """``(1 - tanh(lb + (ub - lb) * step / steps)) / 2`` before the end, 0 from the end on.

    Source: https://arxiv.org/abs/1806.01593.
    """

    lb: float = -7.0
    ub: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, lb=real_number("lb", self.lb), ub=real_number("ub", self.ub))
        if not self.lb < self.ub:
            raise ValueError(f"lb must be below ub, got {self.lb!r} and {self.ub!r}")

    def value(self, step: float) -> float:
        done = self.progress(step)
        return 0.5 * (1.0 - math.tanh(self.lb * (1.0 - done) + self.ub * done)) if done < 1.0 else 0.0


@dataclass(frozen=True)
class KDecay(Curve):
    """A curve whose share done x becomes x ** k: with k above 1 it leaves its beginning later and ends more steeply.

    Source: https://arxiv.org/abs/2004.05909.
    """

    curve: Curve
    k: float

    def __post_init__(self) -> None:
        if not self.curve.length:
            raise ValueError(f"only a curve with an end has a share done, got {self.curve!r}; say until(STEP) first")
        settle(self, k=real_number("k_decay", self.k, above=0))

    def value(self, step: float) -> float:
        assert self.curve.length
        share = min(1.0, step / self.curve.length)
        return self.curve.value(share**self.k * self.curve.length)

    @property
    def length(self) -> float | None:
        return self.curve.length
