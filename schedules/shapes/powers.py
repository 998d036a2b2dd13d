"""Shapes of powers, products and ratios of the step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..checks import real_number, settle, whole_number
from ..curves import Curve
from .basic import Timed

__all__ = ["Chebyshev", "Geometric", "Noam", "PowerLaw", "Products", "Rational"]


@dataclass(frozen=True)
class Geometric(Curve):
    """``factor ** step``. Never ends.

    Args:
        factor: from one step to the next, 0 or more.
    """

    factor: float

    def __post_init__(self) -> None:
        settle(self, factor=real_number("factor", self.factor, at_least=0))

    def value(self, step: float) -> float:
        return float(self.factor**step)


@dataclass(frozen=True)
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
            settle(self, factors=tuple(factors))

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


@dataclass(frozen=True)
class Rational(Timed):
    """From 1 to 0 by a ratio: ``(1 - x) / (1 - x / 2)``, x = ``step / steps``. High for long, then steep.

    Source: REX, https://arxiv.org/abs/2107.04197.
    """

    def value(self, step: float) -> float:
        x = self.progress(step)
        return (1.0 - x) / (1.0 - x / 2.0)


@dataclass(frozen=True)
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

    small: float = 0.05
    big: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, small=real_number("small", self.small, above=0))
        settle(self, big=real_number("big", self.big, at_least=self.small))

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


@dataclass(frozen=True)
class Noam(Curve):
    """``min(n / W, sqrt(W / n))``, n = ``step + 1``: a line up to 1 at step W - 1, then one over the root. Never ends.

    Args:
        warmup: W, steps of the way up, 1 or more.

    Source: Attention Is All You Need, https://arxiv.org/abs/1706.03762, equation 3.
    """

    warmup: int

    def __post_init__(self) -> None:
        settle(self, warmup=whole_number("warmup", self.warmup, at_least=1))

    def value(self, step: float) -> float:
        number = step + 1
        return min(number / self.warmup, math.sqrt(self.warmup / number))


@dataclass(frozen=True)
class PowerLaw(Curve):
    """``max(1, step) ** exponent``. Never ends.

    Args:
        exponent: below 0 for a fall.
    """

    exponent: float

    def __post_init__(self) -> None:
        settle(self, exponent=real_number("exponent", self.exponent))

    def value(self, step: float) -> float:
        return float(max(1.0, step) ** self.exponent)
