"""The shapes that schedules are made of: ramps and decays, each a curve from its own step 0, and the ways down.

The formulas are written in the order of operations of transformers' schedules, so that the two agree to the last bits.
Shapes that repeat, climb stairs or follow a power of the step are in :mod:`schedules.patterns`. The short names at the
end are to be read as a sentence: ``warmup(100).then(cosine(900).floor(0.1))``.
"""

from __future__ import annotations

import math

from .checks import choice, frozen, one_of, real, real_number, whole, whole_number
from .curves import Absolute, Constant, Curve, Over

RAMPS = ("linear", "cosine", "1-sqrt")
DECAYS = ("linear", "cosine", "1-sqrt", "1-square", "exponential")


@frozen
class Timed(Curve):
    """A shape that takes ``steps`` steps. Steps may have a fraction: with ``steps=1`` it is a function of the share."""

    steps: int = whole()

    @property
    def length(self) -> float:
        return self.steps

    def progress(self, step: float) -> float:
        """The share of the steps that is done, in [0, 1]; a shape without steps is done after one."""
        steps = max(1, self.steps)
        return min(step, steps) / steps


@frozen
class Ramp(Timed):
    """Warm-up from ``start`` to 1 in ``steps`` steps: ``start + (1 - start) * f(step / steps)``.

    Args:
        steps: how many, 0 or more.
        start: the multiplier at step 0, from 0 to 1.
        shape: f: ``linear`` x, ``cosine`` (1 - cos(pi x)) / 2, ``1-sqrt`` 1 - sqrt(1 - x).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    start: float = real(default=0.0, at_least=0, at_most=1)
    shape: str = one_of(RAMPS, default="linear")

    def value(self, step: float) -> float:
        x = self.progress(step)
        if self.shape == "cosine":
            x = 0.5 * (1.0 - math.cos(math.pi * x))
        elif self.shape == "1-sqrt":
            x = 1.0 - math.sqrt(1.0 - x)
        return x * (1.0 - self.start) + self.start


@frozen
class LogRamp(Timed):
    """Warm-up from 0 to 1 by the logarithm: ``log(step + 1) / log(steps)``, which is 1 at step ``steps - 1``.

    Steep at first. With one step it is 0 at step 0 and 1 from there on.

    Source: DeepSpeed's ``WarmupLR`` with ``warmup_type="log"``, https://github.com/deepspeedai/DeepSpeed.
    """

    def value(self, step: float) -> float:
        return min(1.0, math.log(step + 1.0) / math.log(max(2, self.steps)))


@frozen
class Linear(Timed):
    """From 1 to 0 on a straight line: ``(steps - step) / steps``."""

    def value(self, step: float) -> float:
        return max(0.0, (self.steps - step) / max(1, self.steps))


@frozen
class Polynomial(Timed):
    """From 1 to 0 by a power of the remaining share: ``(1 - step / steps) ** power``. Without steps it is 0.

    Args:
        steps: how many, 0 or more.
        power: above 0; 1 is a line, 2 falls early.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    power: float = real(default=1.0, above=0)

    def value(self, step: float) -> float:
        if self.steps == 0:
            return 0.0
        return float((1.0 - self.progress(step)) ** self.power)


@frozen
class Cosine(Timed):
    """``(1 + cos(2 pi num_cycles step / steps)) / 2``: with half a cycle from 1 to 0 once.

    Args:
        steps: how many, 0 or more.
        num_cycles: waves in all the steps, 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    num_cycles: float = real(default=0.5, at_least=0)

    def value(self, step: float) -> float:
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * float(self.num_cycles) * 2.0 * self.progress(step))))


@frozen
class CosineRestarts(Timed):
    """``num_cycles`` half cosines one after the other, each from 1 to 0, the next one starting at 1 again.

    ``(1 + cos(pi ((num_cycles step / steps) mod 1))) / 2`` before the end, 0 from the end on.
    """

    num_cycles: int = whole(default=1, at_least=1)

    def value(self, step: float) -> float:
        progress = self.progress(step)
        if progress >= 1.0:
            return 0.0
        if step * self.num_cycles % max(1, self.steps) == 0:
            return 1.0  # A restart. In floating point 49 * (1 / 49) is below 1: the peak would be missed.
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((float(self.num_cycles) * progress) % 1.0))))


@frozen
class OneMinusSqrt(Timed):
    """From 1 to 0 by ``1 - sqrt(step / steps)``: steep at first."""

    def value(self, step: float) -> float:
        return 1.0 - math.sqrt(self.progress(step))


@frozen
class InverseSqrt(Curve):
    """``1 / sqrt((step + timescale) / timescale)``. Never ends."""

    timescale: float = real(above=0)

    def value(self, step: float) -> float:
        return 1.0 / math.sqrt((step + self.timescale) / self.timescale)


@frozen
class Exponential(Timed):
    """From 1 to 0 exponentially: ``(r ** (step / steps) - r) / (1 - r)``; the smaller ``r``, the steeper at first.

    Without the shift it would end at r: the shift takes it to 0, so that a floor means what it says.

    Args:
        steps: how many, 0 or more.
        ratio: r, above 0 and below 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    ratio: float = real(default=0.1, above=0, below=1)

    def value(self, step: float) -> float:
        return float((self.ratio ** self.progress(step) - self.ratio) / (1.0 - self.ratio))


@frozen
class OneMinusSquare(Timed):
    """From 1 to 0 by ``1 - (step / steps) ** 2``: slow at first."""

    def value(self, step: float) -> float:
        return 1.0 - self.progress(step) ** 2


@frozen
class Rational(Timed):
    """From 1 to 0 by a ratio: ``(1 - x) / (1 - x / 2)``, x = ``step / steps``. High for long, then steep.

    Source: REX, https://arxiv.org/abs/2107.04197.
    """

    def value(self, step: float) -> float:
        x = self.progress(step)
        return (1.0 - x) / (1.0 - x / 2.0)


@frozen
class Tanh(Timed):
    """``(1 - tanh(lb + (ub - lb) * step / steps)) / 2`` before the end, 0 from the end on.

    Source: https://arxiv.org/abs/1806.01593.
    """

    lb: float = real(default=-7.0)
    ub: float = real(default=3.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lb < self.ub:
            raise ValueError(f"lb must be below ub, got {self.lb!r} and {self.ub!r}")

    def value(self, step: float) -> float:
        done = self.progress(step)
        return 0.5 * (1.0 - math.tanh(self.lb * (1.0 - done) + self.ub * done)) if done < 1.0 else 0.0


@frozen
class KDecay(Over):
    """A curve whose share done x becomes x ** k: with k above 1 it leaves its beginning later and ends more steeply.

    Source: https://arxiv.org/abs/2004.05909.
    """

    k: float = real(called="k_decay", above=0)

    def __post_init__(self) -> None:
        if not self.curve.length:
            raise ValueError(f"only a curve with an end has a share done, got {self.curve!r}; say until(STEP) first")
        super().__post_init__()

    def value(self, step: float) -> float:
        assert self.curve.length
        share = min(1.0, step / self.curve.length)
        return self.curve.value(share**self.k * self.curve.length)


def falling(kind: str, steps: int, end: float = 0.0, num_cycles: float = 0.5) -> Curve:
    """Return the curve from 1 to ``end`` in ``steps`` steps: ``end + (1 - end) * f(x)``, x the share of the steps done.

    f is ``1 - x`` for ``linear``, ``(1 + cos(2 pi c x)) / 2`` for ``cosine``, ``1 - sqrt(x)`` for ``1-sqrt``,
    ``1 - x ** 2`` for ``1-square``, ``(q ** x - q) / (1 - q)`` for ``exponential``. There q is ``end``, so that the
    curve is ``end ** x``; for an end of 0 or 1, which no such curve can have, q is 0.1.

    Args:
        kind: one of DECAYS.
        steps: how many steps, 0 or more.
        end: from 0 to 1.
        num_cycles: c, waves of the cosine, 0 or more.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """
    choice("shape", kind, DECAYS)
    end = real_number("end", end, at_least=0, at_most=1)
    if kind == "linear":
        curve: Curve = Polynomial(steps)
    elif kind == "cosine":
        curve = Cosine(steps, num_cycles)
    elif kind == "1-sqrt":
        curve = OneMinusSqrt(steps)
    elif kind == "1-square":
        curve = OneMinusSquare(steps)
    else:
        curve = Exponential(steps, end if 0.0 < end < 1.0 else 0.1)
    return curve.floor(end)


@frozen
class Annealed(Over):
    """``curve(step)`` before step ``start``, ``fall(step - start) * curve(start)`` from there on.

    One node that holds the curve once: annealed again and again, it grows by a node each time and does not double.
    """

    start: int
    fall: Curve

    def value(self, step: float) -> float:
        if step < self.start:
            return self.curve.value(step)
        return self.fall.value(step - self.start) * self.curve.value(self.start)

    @property
    def length(self) -> float | None:
        return None if self.fall.length is None else self.start + self.fall.length


def annealed(curve: Curve, start: int, num_steps: int, shape: str = "1-sqrt", to: float = 0.0) -> Curve:
    """Return the curve that leaves ``curve`` at step ``start`` and falls to ``to`` times its value there.

    ``curve(start) * (to + (1 - to) * f((t - start) / num_steps))`` from step ``start`` on; f as in
    :func:`schedules.shapes.falling`. After ``start + num_steps`` it stays.

    Args:
        curve: the curve before.
        start: the step that still has the full value, 0 or more.
        num_steps: steps of the fall, 1 or more.
        shape: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``.
        to: the end as a share of the value at ``start``, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: the cooldown of https://arxiv.org/abs/2405.18392.
    """
    start = whole_number("start", start)
    num_steps = whole_number("num_steps", num_steps, at_least=1)
    fall = falling(shape, num_steps, real_number("to", to, at_least=0, at_most=1))
    return Annealed(curve, start, fall)


@frozen
class Stretched(Over):
    """``curve(step)`` before step ``start``; what is left of the curve from there takes until step ``end``.

    ``curve(start + (length - start) * x)``, x the share done of the steps from ``start`` to ``end``.

    Args:
        curve: the curve; it must have an end after ``start``.
        start: the first step that is stretched, or squeezed.
        end: the step that has the curve's end, above ``start``.
    """

    start: int = whole()
    end: int = whole()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve.length is None:
            raise ValueError("the schedule has no end that could be put off; replace it by one that has")
        if not self.start < self.curve.length:
            raise ValueError(
                f"the schedule has ended at step {self.curve.length:g}, and at step {self.start} nothing of it is left "
                "to be stretched; replace it by another one"
            )
        if not self.start < self.end:
            raise ValueError(f"the end must be after the current step {self.start}, got {self.end}")

    def value(self, step: float) -> float:
        if step < self.start:
            return self.curve.value(step)
        assert self.curve.length is not None
        done = min(1.0, (step - self.start) / (self.end - self.start))
        return self.curve.value(self.start + (self.curve.length - self.start) * done)

    @property
    def length(self) -> float:
        return self.end


def spanned(share: Curve, max_lr: float | None, min_lr: float, names: tuple[str, str] = ("max_lr", "min_lr")) -> Curve:
    """Let 1 stand for ``max_lr``, by default each group's own lr, and 0 for the learning rate ``min_lr``.

    Raises:
        TypeError, ValueError: ``max_lr`` or ``min_lr`` is no number of 0 or more, or ``min_lr`` is the larger one.
    """
    low = real_number(names[1], min_lr, at_least=0)
    if max_lr is None:
        return share.floor_lr(low) if low else share
    high = real_number(names[0], max_lr, above=0)
    if low > high:
        raise ValueError(f"{names[1]}={low:g} is above {names[0]}={high:g}")
    return share.between(Absolute(low), Absolute(high)) if low else share * Absolute(high)


absolute = Absolute
constant = Constant
cosine = Cosine
exponential = Exponential
inverse_sqrt = InverseSqrt
linear = Linear
one_minus_sqrt = OneMinusSqrt
polynomial = Polynomial
warmup = Ramp
