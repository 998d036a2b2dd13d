"""The shapes that schedules are made of: each a curve from the step to a multiplier, from its own step 0.

The formulas are written in the order of operations of transformers' schedules, so that the two agree to the last bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..checks import choice, real_number, settle, whole_number
from ..curves import Constant, Curve

__all__ = [
    "RAMPS",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Exponential",
    "InverseSqrt",
    "Linear",
    "OneMinusSqrt",
    "Polynomial",
    "Ramp",
    "Timed",
]

RAMPS = ("linear", "cosine", "1-sqrt")


@dataclass(frozen=True)
class Timed(Curve):
    """A shape that takes ``steps`` steps. Steps may have a fraction: with ``steps=1`` it is a function of the share."""

    steps: int

    def __post_init__(self) -> None:
        settle(self, steps=whole_number("steps", self.steps))

    @property
    def length(self) -> float:
        return self.steps

    def progress(self, step: float) -> float:
        """The share of the steps that is done, in [0, 1]; a shape without steps is done after one."""
        steps = max(1, self.steps)
        return min(step, steps) / steps


@dataclass(frozen=True)
class Ramp(Timed):
    """Warm-up from ``start`` to 1 in ``steps`` steps: ``start + (1 - start) * f(step / steps)``.

    Args:
        steps: how many, 0 or more.
        start: the multiplier at step 0, from 0 to 1.
        shape: f: ``linear`` x, ``cosine`` (1 - cos(pi x)) / 2, ``1-sqrt`` 1 - sqrt(1 - x).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    start: float = 0.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, start=real_number("start", self.start, at_least=0, at_most=1))
        choice("shape", self.shape, RAMPS)

    def value(self, step: float) -> float:
        x = self.progress(step)
        if self.shape == "cosine":
            x = 0.5 * (1.0 - math.cos(math.pi * x))
        elif self.shape == "1-sqrt":
            x = 1.0 - math.sqrt(1.0 - x)
        return x * (1.0 - self.start) + self.start


@dataclass(frozen=True)
class Linear(Timed):
    """From 1 to 0 on a straight line: ``(steps - step) / steps``."""

    def value(self, step: float) -> float:
        return max(0.0, (self.steps - step) / max(1, self.steps))


@dataclass(frozen=True)
class Polynomial(Timed):
    """From 1 to 0 by a power of the remaining share: ``(1 - step / steps) ** power``. Without steps it is 0.

    Args:
        steps: how many, 0 or more.
        power: above 0; 1 is a line, 2 falls early.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, power=real_number("power", self.power, above=0))

    def value(self, step: float) -> float:
        if self.steps == 0:
            return 0.0
        return float((1.0 - self.progress(step)) ** self.power)


@dataclass(frozen=True)
class Cosine(Timed):
    """``(1 + cos(2 pi num_cycles step / steps)) / 2``: with half a cycle from 1 to 0 once.

    Args:
        steps: how many, 0 or more.
        num_cycles: waves in all the steps, 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    num_cycles: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, num_cycles=real_number("num_cycles", self.num_cycles, at_least=0))

    def value(self, step: float) -> float:
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * float(self.num_cycles) * 2.0 * self.progress(step))))


@dataclass(frozen=True)
class CosineRestarts(Timed):
    """``num_cycles`` half cosines one after the other, each from 1 to 0, the next one starting at 1 again.

    ``(1 + cos(pi ((num_cycles step / steps) mod 1))) / 2`` before the end, 0 from the end on.
    """

    num_cycles: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, num_cycles=whole_number("num_cycles", self.num_cycles, at_least=1))

    def value(self, step: float) -> float:
        progress = self.progress(step)
        if progress >= 1.0:
            return 0.0
        if step * self.num_cycles % max(1, self.steps) == 0:
            return 1.0  # A restart. In floating point 49 * (1 / 49) is below 1: the peak would be missed.
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(self.num_cycles) * progress) % 1.0))))


@dataclass(frozen=True)
class OneMinusSqrt(Timed):
    """From 1 to 0 by ``1 - sqrt(step / steps)``: steep at first."""

    def value(self, step: float) -> float:
        return 1.0 - math.sqrt(self.progress(step))


@dataclass(frozen=True)
class InverseSqrt(Curve):
    """``1 / sqrt((step + timescale) / timescale)``. Never ends."""

    timescale: float

    def __post_init__(self) -> None:
        settle(self, timescale=real_number("timescale", self.timescale, above=0))

    def value(self, step: float) -> float:
        return 1.0 / math.sqrt((step + self.timescale) / self.timescale)


@dataclass(frozen=True)
class Exponential(Timed):
    """From 1 to 0 exponentially: ``(r ** (step / steps) - r) / (1 - r)``; the smaller ``r``, the steeper at first.

    Without the shift it would end at r: the shift takes it to 0, so that a floor means what it says.

    Args:
        steps: how many, 0 or more.
        ratio: r, above 0 and below 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    ratio: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, ratio=real_number("ratio", self.ratio, above=0, below=1))

    def value(self, step: float) -> float:
        return float((self.ratio ** self.progress(step) - self.ratio) / (1.0 - self.ratio))
