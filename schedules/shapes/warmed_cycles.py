"""Cycles that each begin with a warm-up of the same length, and the falling heights of their peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import real_number, settle, whole_number
from ..curves import Curve

__all__ = ["CyclePeaks", "WarmedCycles"]


@dataclass(frozen=True)
class WarmedCycles(Curve):
    """From 0 to 1 on a line in ``warmup`` steps, back to 0 on half a cosine, again and again. Never ends.

    Args:
        warmup: steps up in every cycle, 0 or more.
        first: steps of the first cycle, more than ``warmup``.
        mul: a way down's length over that of the one before, above 0; rounded down to whole steps, 1 at least.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    warmup: int
    first: int
    mul: float = 1.0

    def __post_init__(self) -> None:
        settle(self, warmup=whole_number("num_warmup_steps", self.warmup))
        settle(self, first=whole_number("first_cycle_steps", self.first))
        if self.first <= self.warmup:
            raise ValueError(
                f"first_cycle_steps={self.first} must be more than num_warmup_steps={self.warmup}, which every cycle "
                f"has"
            )
        settle(self, mul=real_number("cycle_mult", self.mul, above=0))

    def cycle(self, step: float) -> tuple[int, float, int]:
        """Return the cycle that ``step`` lies in, counted from 0, the step in that cycle, and the cycle's length."""
        index, position, length = 0, step, int(self.first)
        while position >= length:
            index, position = index + 1, position - length
            following = max(1, int((length - self.warmup) * self.mul)) + int(self.warmup)
            if following == length:  # from here on all cycles are alike
                return index + int(position // length), position % length, length
            length = following
        return index, position, length

    def value(self, step: float) -> float:
        _, position, length = self.cycle(step)
        if position < self.warmup:
            return position / self.warmup
        return (1.0 + math.cos(math.pi * (position - self.warmup) / (length - self.warmup))) / 2.0


@dataclass(frozen=True)
class CyclePeaks(Curve):
    """``gamma ** i`` in cycle i, counted from 0. Never ends.

    Args:
        of: the cycles.
        gamma: above 0 and at most 1.
    """

    of: WarmedCycles
    gamma: float

    def __post_init__(self) -> None:
        settle(self, gamma=real_number("gamma", self.gamma, above=0, at_most=1))

    def value(self, step: float) -> float:
        return float(self.gamma ** self.of.cycle(step)[0])
