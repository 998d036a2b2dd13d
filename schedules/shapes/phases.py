"""Shapes that go up and down: from level to level (one-cycle), and triangles again and again (cyclical rates)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..checks import choice, real_number, settle, whole_number
from ..curves import Curve

__all__ = ["TRIANGLES", "Phases", "Triangles"]

TRIANGLES = ("triangular", "triangular2", "exp_range")


@dataclass(frozen=True)
class Phases(Curve):
    """From ``levels[i]`` to ``levels[i + 1]`` by step ``stops[i]``; after the last stop the last level stays.

    With x the share of the way from a to b: ``cosine`` b + (a - b) (1 + cos(pi x)) / 2, ``linear`` a (1 - x) + b x.

    Args:
        levels: one more than there are stops; the first holds at step 0.
        stops: steps, may have a fraction. A stop before step 0 or before the last one leaves its phase out.
        shape: ``cosine`` or ``linear``.

    Raises:
        TypeError, ValueError: an argument has the wrong type, the numbers of levels and stops do not fit.
    """

    levels: tuple[float, ...]
    stops: tuple[float, ...]
    shape: str = "cosine"

    def __post_init__(self) -> None:
        for name in ("levels", "stops"):
            settle(self, **{name: tuple(real_number(name, number) for number in getattr(self, name))})
        if not self.stops or len(self.levels) != len(self.stops) + 1:
            raise ValueError(f"one level more than stops is needed, got {self.levels!r} and {self.stops!r}")
        choice("shape", self.shape, ("cosine", "linear"))

    def value(self, step: float) -> float:
        start = 0.0
        last = len(self.stops) - 1
        for index, stop in enumerate(self.stops):
            if step <= stop or index == last:
                break
            start = stop
        before, after = self.levels[index], self.levels[index + 1]
        x = min(1.0, (step - start) / (stop - start)) if stop > start else 1.0
        if self.shape == "linear":
            return before * (1.0 - x) + after * x  # exact at both ends
        return after + (before - after) / 2.0 * (math.cos(math.pi * x) + 1.0)

    @property
    def length(self) -> float:
        return max(0.0, self.stops[-1])


@dataclass(frozen=True)
class Triangles(Curve):
    """From 0 to 1 in ``up`` steps and back in ``down`` steps, again and again, times a scale. Never ends.

    With p the step in the cycle the height is ``p / up`` while p <= up, then ``(up + down - p) / down``. The scale of
    cycle c (counted from 1) at step t is 1 (``triangular``), ``1 / 2 ** (c - 1)`` (``triangular2``), ``gamma ** t``
    (``exp_range``), or ``scale`` of c or of t.

    Args:
        up: steps, 1 or more.
        down: steps, 0 or more.
        mode: ``triangular``, ``triangular2`` or ``exp_range``.
        gamma: base of ``exp_range``, above 0.
        scale: a function in place of the mode.
        per_step: give ``scale`` the step, not the cycle.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Cyclical Learning Rates for Training Neural Networks, https://arxiv.org/abs/1506.01186.
    """

    up: int
    down: int
    mode: str = "triangular"
    gamma: float = 1.0
    scale: Callable[[float], float] | None = None
    per_step: bool = False

    def __post_init__(self) -> None:
        settle(self, up=whole_number("up", self.up, at_least=1))
        settle(self, down=whole_number("down", self.down))
        choice("mode", self.mode, TRIANGLES)
        settle(self, gamma=real_number("gamma", self.gamma, above=0))
        if self.scale is not None and not callable(self.scale):
            raise TypeError(f"scale_fn must be a function of the cycle or of the step, got {self.scale!r}")

    def value(self, step: float) -> float:
        cycle, position = divmod(step, self.up + self.down)
        height = position / self.up if position <= self.up else (self.up + self.down - position) / self.down
        return height * self._scale(int(cycle), step)

    def _scale(self, cycle: int, step: float) -> float:
        if self.scale is not None:
            return self.scale(step if self.per_step else cycle + 1)
        if self.mode == "triangular2":
            return 0.5**cycle
        if self.mode == "exp_range":
            return float(self.gamma**step)
        return 1.0
