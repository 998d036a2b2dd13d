"""Shapes that repeat or climb: stairs, phases, triangles, cycles with a warm-up each, powers of the step, products."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import field
from typing import Any

from .checks import frozen, numbers, one_of, real, real_number, whole
from .curves import Curve, cycle_at
from .shapes import Timed

TRIANGLES = ("triangular", "triangular2", "exp_range")


@frozen
class Stairs(Curve):
    """``rate ** i`` in stretch i, counted from 0, which takes ``every * mul ** i`` steps. Never ends.

    With ``mul`` below 1 all stretches together end after ``every / (1 - mul)`` steps; from there on it is 0.
    """

    every: float = real(above=0)
    rate: float = real(at_least=0)
    mul: float = real(default=1.0, above=0)

    def value(self, step: float) -> float:
        index, _, _ = cycle_at(step, self.every, self.mul)
        return float(self.rate**index) if index >= 0 else 0.0


@frozen
class Milestones(Curve):
    """``rate ** i``, i the number of milestones at or before the step. Never ends."""

    milestones: tuple[float, ...] = numbers(at_least=0)
    rate: float = real(at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be in ascending order, got {self.milestones!r}")

    def value(self, step: float) -> float:
        return float(self.rate ** bisect_right(self.milestones, step))


@frozen
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

    levels: tuple[float, ...] = numbers()
    stops: tuple[float, ...] = numbers()
    shape: str = one_of(("cosine", "linear"), default="cosine")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stops or len(self.levels) != len(self.stops) + 1:
            raise ValueError(f"one level more than stops is needed, got {self.levels!r} and {self.stops!r}")

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


@frozen
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

    up: int = whole(at_least=1)
    down: int = whole()
    mode: str = one_of(TRIANGLES, default="triangular")
    gamma: float = real(default=1.0, above=0)
    scale: Callable[[float], float] | None = None
    per_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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


@frozen
class WarmedCycles(Curve):
    """From 0 to 1 on a line in ``warmup`` steps, back to 0 on half a cosine, again and again. Never ends.

    Args:
        warmup: steps up in every cycle, 0 or more.
        first: steps of the first cycle, more than ``warmup``.
        mul: a way down's length over that of the one before, above 0; rounded down to whole steps, 1 at least.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    warmup: int = whole(called="num_warmup_steps")
    first: int = whole(called="first_cycle_steps")
    mul: float = real(default=1.0, called="cycle_mult", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first <= self.warmup:
            raise ValueError(
                f"first_cycle_steps={self.first} must be more than num_warmup_steps={self.warmup}, which every cycle "
                "has"
            )

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


@frozen
class CyclePeaks(Curve):
    """``gamma ** i`` in cycle i, counted from 0. Never ends.

    Args:
        of: the cycles.
        gamma: above 0 and at most 1.
    """

    of: WarmedCycles
    gamma: float = real(above=0, at_most=1)

    def value(self, step: float) -> float:
        return float(self.gamma ** self.of.cycle(step)[0])


@frozen
class Geometric(Curve):
    """``factor ** step``. Never ends.

    Args:
        factor: from one step to the next, 0 or more.
    """

    factor: float = real(at_least=0)

    def value(self, step: float) -> float:
        return float(self.factor**step)


@frozen
class Products(Curve):
    """``factors(1) * factors(2) * ... * factors(step)``; 1 at step 0.

    The products found so far are kept, so a function is called once for each step; a step far ahead costs a call and
    a number for every step before it. They are no part of the curve: it pickles and compares by its factors.

    Args:
        factors: a function of the step, from step 1 on, or the factors of step 1, 2, ... one by one: after the last
            one the product stays.

    Raises:
        TypeError, ValueError: a factor is not a number or is negative.
    """

    factors: Callable[[int], float] | tuple[float, ...]
    _known: list[float] = field(default_factory=lambda: [1.0], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.factors):
            factors = (real_number(f"factor {i}", factor, at_least=0) for i, factor in enumerate(self.factors))
            object.__setattr__(self, "factors", tuple(factors))

    def __reduce__(self) -> tuple[Any, ...]:
        return Products, (self.factors,)

    def value(self, step: float) -> float:
        known = self._known
        wanted = int(step) if callable(self.factors) else min(int(step), len(self.factors))
        while len(known) <= wanted:
            known.append(known[-1] * self._factor(len(known)))
        return known[wanted]

    def _factor(self, step: int) -> float:
        if callable(self.factors):
            return real_number(f"the factor of step {step}", self.factors(step), at_least=0)
        return self.factors[step - 1]

    @property
    def length(self) -> float | None:
        return None if callable(self.factors) else len(self.factors)


@frozen
class Chebyshev(Timed):
    """The inverse roots of a Chebyshev polynomial in fractal order: large and small steps mixed.

    ``1 / ((M + m) / 2 - (M - m) / 2 * cos(pi (s(step) + 1/2) / N))``: between 1 / M and 1 / m. N is the smallest power
    of two that is at least ``steps``; s orders 0 .. N - 1 by ``s_2n(2 i) = s_n(i)``, ``s_2n(2 i + 1) = 2 n - 1 -
    s_n(i)``. One step costs as much as N has bits. The value of step ``steps - 1`` stays.

    Args:
        steps: how many steps.
        small: m, lower end of the spectrum, above 0.
        big: M, upper end, at least m.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Acceleration via Fractal Learning Rate Schedules, https://arxiv.org/abs/2103.01338.
    """

    small: float = real(default=0.05, above=0)
    big: float = real(default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        real_number("big", self.big, at_least=self.small)

    def value(self, step: float) -> float:
        steps = max(1, self.steps)
        bits = (steps - 1).bit_length()
        node = fractal_order(min(int(step), steps - 1), bits)
        middle, radius = (self.big + self.small) / 2.0, (self.big - self.small) / 2.0
        return 1.0 / (middle - radius * math.cos((node + 0.5) * math.pi / 2**bits))


def fractal_order(index: int, bits: int) -> int:
    """Return s(index) for N = 2 ** bits, see :class:`Chebyshev`: the index's bits from the highest down."""
    node, size = 0, 1
    for bit in reversed(range(bits)):
        size *= 2
        if index >> bit & 1:
            node = size - 1 - node
    return node


@frozen
class Noam(Curve):
    """``min(n / W, sqrt(W / n))``, n = ``step + 1``: a line up to 1 at step W - 1, then one over the root. Never ends.

    Args:
        warmup: W, steps of the way up, 1 or more.

    Source: Attention Is All You Need, https://arxiv.org/abs/1706.03762, equation 3.
    """

    warmup: int = whole(at_least=1)

    def value(self, step: float) -> float:
        number = step + 1
        return min(number / self.warmup, math.sqrt(self.warmup / number))


@frozen
class PowerLaw(Curve):
    """``max(1, step) ** exponent``. Never ends.

    Args:
        exponent: below 0 for a fall.
    """

    exponent: float = real()

    def value(self, step: float) -> float:
        return float(max(1.0, step) ** self.exponent)


@frozen
class _Growing(Curve):
    """``1 + rate * step / every``, by which others multiply or divide. Never ends.

    Args:
        rate: 0 or more.
        every: steps, 1 or more.
        staircase: only whole ``step / every`` count.
    """

    rate: float = real(at_least=0)
    every: int = whole(at_least=1)
    staircase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.staircase, bool):
            raise TypeError(f"staircase must be True or False, got {self.staircase!r}")

    def grown(self, step: float) -> float:
        times = step / self.every
        return 1.0 + self.rate * (math.floor(times) if self.staircase else times)


@frozen
class Rising(_Growing):
    """``1 + rate * step / every``. Never ends."""

    def value(self, step: float) -> float:
        return self.grown(step)


@frozen
class Inverse(_Growing):
    """``1 / (1 + rate * step / every)``. Never ends."""

    def value(self, step: float) -> float:
        return 1.0 / self.grown(step)
