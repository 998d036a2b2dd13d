"""Shapes that stay on a level and then change to the next."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from ..checks import real_number, settle
from ..curves import Curve, cycle_at

__all__ = ["Milestones", "Stairs"]


@dataclass(frozen=True)
class Stairs(Curve):
    """``rate ** i`` in stretch i, counted from 0, which takes ``every * mul ** i`` steps. Never ends.

    With ``mul`` below 1 all stretches together end after ``every / (1 - mul)`` steps; from there on it is 0.
    """

    every: float
    rate: float
    mul: float = 1.0

    def __post_init__(self) -> None:
        settle(self, every=real_number("every", self.every, above=0))
        settle(self, rate=real_number("rate", self.rate, at_least=0))
        settle(self, mul=real_number("mul", self.mul, above=0))

    def value(self, step: float) -> float:
        index, _, _ = cycle_at(step, self.every, self.mul)
        return float(self.rate**index) if index >= 0 else 0.0


@dataclass(frozen=True)
class Milestones(Curve):
    """``rate ** i``, i the number of milestones at or before the step. Never ends."""

    milestones: tuple[float, ...]
    rate: float

    def __post_init__(self) -> None:
        settle(self, milestones=tuple(real_number("milestones", each, at_least=0) for each in self.milestones))
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be in ascending order, got {self.milestones!r}")
        settle(self, rate=real_number("rate", self.rate, at_least=0))

    def value(self, step: float) -> float:
        return float(self.rate ** bisect_right(self.milestones, step))
