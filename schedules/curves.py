"""Curves: pure functions of the step, and the ways to put them together.

A curve maps a step (0 is the first) to a multiplier of the initial learning rate. It is a frozen dataclass: it keeps
no memory of earlier calls, so any step may be asked for in any order, and it pickles, compares and hashes by value.

    >>> from schedules.curves import Curve
    >>> from schedules.shapes import Cosine, Ramp
    >>> curve = Ramp(100).then(Cosine(900).floor(0.1))
    >>> curve(50), curve(100), curve(10_000)
    (0.5, 1.0, 0.1)
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace

import torch

from .checks import Checked, frozen, one_of, real, real_number, whole, whole_number


class Curve(Checked, ABC):
    """A multiplier of the learning rate as a pure function of the step.

    A new shape is a frozen dataclass with one method, :meth:`value`, and, where it ends, :attr:`length`.
    """

    @abstractmethod
    def value(self, step: float) -> float:
        """Return the multiplier at ``step``, 0 or more. After its end a curve keeps its last value."""

    def __call__(self, step: float) -> float:
        """Return the multiplier at ``step``.

        Args:
            step: how many steps were done before; 0 or more.

        Raises:
            ValueError: ``step`` is negative, infinite or NaN.
        """
        if not 0 <= step < math.inf:
            raise ValueError(f"step must be finite and at least 0, got {step!r}")
        return self.value(step)

    def values(self, steps: int | Iterable[float]) -> list[float]:
        """Return the multipliers at many steps at once.

        Args:
            steps: how many, from step 0 on; or the steps themselves, in any order.
        """
        if not isinstance(steps, Iterable):
            steps = range(whole_number("steps", steps))
        return [self(step) for step in steps]

    @property
    def length(self) -> float | None:
        """How many steps the curve takes, or None if it never ends."""
        return None

    def bind(self, initial_lr: float) -> Curve:
        """Return the curve for a param group with this initial learning rate.

        Only curves that hold an absolute learning rate (:class:`FloorLR`) differ from group to group: they override
        this. The others bind the curves that they are made of.
        """
        if not is_dataclass(self):
            return self
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        bound = {name: part.bind(initial_lr) for name, part in parts.items() if isinstance(part, Curve)}
        changed = any(part is not parts[name] for name, part in bound.items())
        return replace(self, **bound) if changed else self

    def then(self, following: Curve, at: float | None = None) -> Then:
        """Follow this curve for ``at`` steps (default: its length), then ``following``, which counts from 0 there."""
        if at is None:
            at = self.length
        if at is None:
            raise ValueError(f"{self!r} never ends: say at which step the next curve starts, then(..., at=STEP)")
        return Then(self, following, at)

    def switch(self, following: Curve, at: float) -> Switch:
        """Follow this curve before step ``at``, ``following`` from there on, which has counted all the time."""
        return Switch(self, following, at)

    def floor(self, rate: float) -> Floor:
        """Squeeze the curve's range from [0, 1] to [``rate``, 1]."""
        return Floor(self, rate)

    def floor_lr(self, lr: float) -> FloorLR:
        """Squeeze the curve so that 0 stands for the absolute learning rate ``lr`` in every param group."""
        return FloorLR(self, lr)

    def between(self, bottom: float | Curve, top: float | Curve = 1.0) -> Between:
        """Take the curve as the share of the way from ``bottom`` (at 0) to ``top`` (at 1), numbers or curves.

        Numbers are multipliers; ``Absolute(lr)`` is a learning rate.
        """
        return Between(self, _curve(bottom), _curve(top))

    def cycles(self, count: int | None = None, mul: float = 1.0) -> Cycles:
        """Repeat the curve ``count`` times (None: for ever), each time ``mul`` times as long as the last."""
        return Cycles(self, count, mul)

    def noise(
        self, start: float, stop: float | None = None, *, limit: float = 0.67, std: float = 1.0, seed: int = 42
    ) -> Noise:
        """Multiply by ``1 + noise`` from step ``start`` to ``stop`` (None: for ever), see :class:`Noise`."""
        return Noise(self, start, stop, limit, std, seed)

    def __mul__(self, other: float | Curve) -> Times:
        """Multiply two curves, or a curve and a number."""
        return Times(self, _curve(other))

    __rmul__ = __mul__

    def ahead(self, steps: float) -> Ahead:
        """Run the curve ``steps`` steps ahead of the count."""
        return Ahead(self, steps)

    def paced(self, steps: float) -> Paced:
        """Take ``steps`` steps for each of the curve's."""
        return Paced(self, steps)

    def until(self, last_step: float) -> Until:
        """Stop the count at ``last_step``: every later step has its value."""
        return Until(self, last_step)


@frozen
class _Joined(Curve):
    """One curve before step ``at``, another from there on."""

    first: Curve
    second: Curve
    at: float = real(at_least=0)


@frozen
class Then(_Joined):
    """One curve after another: ``first(step)`` before step ``at``, ``second(step - at)`` from there on."""

    def value(self, step: float) -> float:
        return self.first.value(step) if step < self.at else self.second.value(step - self.at)

    @property
    def length(self) -> float | None:
        return None if self.second.length is None else self.at + self.second.length


@frozen
class Switch(_Joined):
    """One curve in place of another: ``first(step)`` before step ``at``, ``second(step)`` from there on."""

    def value(self, step: float) -> float:
        return (self.first if step < self.at else self.second).value(step)

    @property
    def length(self) -> float | None:
        return None if self.second.length is None else max(self.at, self.second.length)


@frozen
class Over(Curve):
    """A curve made of another one, as long as that."""

    curve: Curve

    @property
    def length(self) -> float | None:
        return self.curve.length


@frozen
class Floor(Over):
    """``rate + (1 - rate) * curve(step)``: the same curve, ending at ``rate`` instead of 0."""

    rate: float = real(at_least=0, at_most=1)

    def value(self, step: float) -> float:
        return self.curve.value(step) * (1.0 - self.rate) + self.rate


@frozen
class FloorLR(Over):
    """A floor given as an absolute learning rate: it becomes a :class:`Floor` once a group's initial lr is known.

    A group whose initial lr is 0 is frozen and stays at 0: the floor does not wake it.
    """

    lr: float = real(at_least=0)

    def value(self, step: float) -> float:
        raise TypeError(f"a floor of lr={self.lr:g} needs the group's initial lr: call bind(initial_lr) first")

    def bind(self, initial_lr: float) -> Floor:
        _check_end(self.lr, initial_lr)
        return Floor(self.curve.bind(initial_lr), self.lr / initial_lr if initial_lr else 0.0)


def _check_end(lr: float, initial_lr: float) -> None:
    if initial_lr != 0 and not lr <= initial_lr:
        raise ValueError(
            f"the lower end (min_lr, lr_end, eta_min or base_lr) {lr:g} is above the initial lr {initial_lr:g}: "
            "lower it, or raise the group's lr"
        )


@frozen
class Ahead(Over):
    """``curve(step + steps)``: the curve enters ``steps`` steps in."""

    steps: float = real(at_least=0)

    def value(self, step: float) -> float:
        return self.curve.value(step + self.steps)

    @property
    def length(self) -> float | None:
        return None if self.curve.length is None else max(0, self.curve.length - self.steps)


@frozen
class Paced(Over):
    """``curve(step / steps)``: each step of the curve takes ``steps`` steps."""

    steps: float = real(above=0)

    def value(self, step: float) -> float:
        return self.curve.value(step / self.steps)

    @property
    def length(self) -> float | None:
        return None if self.curve.length is None else self.curve.length * self.steps


@frozen
class Until(Over):
    """``curve(min(step, last_step))``: the learning rate stays where it is at ``last_step``."""

    last_step: float = real(at_least=0)

    def value(self, step: float) -> float:
        return self.curve.value(min(step, self.last_step))

    @property
    def length(self) -> float | None:
        return self.last_step


@frozen
class Absolute(Curve):
    """A learning rate (or whatever else is scheduled) itself, in place of a multiplier of the initial one.

    It becomes a multiplier once a group's initial value is known. A group whose initial value is 0 is frozen and stays
    at 0.
    """

    lr: float = real()

    def value(self, step: float) -> float:
        if self.lr == 0:
            return 0.0
        raise TypeError(f"an absolute {self.lr:g} needs the group's initial value: call bind(initial_lr) first")

    def bind(self, initial_lr: float) -> Curve:
        return Constant(self.lr / initial_lr if initial_lr else 0.0)


@frozen
class EndLR(Absolute):
    """An absolute learning rate for a curve to fall to: it must not be above a group's initial one."""

    lr: float = real(at_least=0)

    def bind(self, initial_lr: float) -> Curve:
        _check_end(self.lr, initial_lr)
        return super().bind(initial_lr)


@frozen
class Constant(Curve):
    """``level`` at every step. Never ends."""

    level: float = real(default=1.0)

    def value(self, step: float) -> float:
        return float(self.level)


def bind_group(curve: Curve, index: int, initial: float) -> Curve:
    """Return ``curve.bind(initial)`` of the param group ``index``; a ValueError says which group it was."""
    try:
        return curve.bind(initial)
    except ValueError as error:
        raise ValueError(f"param group {index}: {error}") from None


def _curve(value: float | Curve) -> Curve:
    return value if isinstance(value, Curve) else Constant(value)


@frozen
class Between(Curve):
    """``bottom(step) + (top(step) - bottom(step)) * share(step)``."""

    share: Curve
    bottom: Curve
    top: Curve

    def value(self, step: float) -> float:
        bottom = self.bottom.value(step)
        return bottom + (self.top.value(step) - bottom) * self.share.value(step)

    @property
    def length(self) -> float | None:
        return self.share.length


@frozen
class _Pair(Curve):
    """Two curves at the same step; as long as the first."""

    first: Curve
    second: Curve

    @property
    def length(self) -> float | None:
        return self.first.length


@frozen
class Times(_Pair):
    """``first(step) * second(step)``; as long as the first."""

    def value(self, step: float) -> float:
        return self.first.value(step) * self.second.value(step)


@frozen
class Max(_Pair):
    """The larger of ``first(step)`` and ``second(step)``; as long as the first."""

    def value(self, step: float) -> float:
        return max(self.first.value(step), self.second.value(step))


@frozen
class Min(_Pair):
    """The smaller of ``first(step)`` and ``second(step)``; as long as the first."""

    def value(self, step: float) -> float:
        return min(self.first.value(step), self.second.value(step))


# A step this near to a boundary, relative to itself, lies on it: with a length of 0.1 or a mul of 1.1 rounding would
# otherwise put a restart one cycle away.
_ON_BOUNDARY = 1e-12


def cycle_at(step: float, length: float, mul: float) -> tuple[int, float, float]:
    """Return the cycle that ``step`` lies in, counted from 0, its first step, and its length over the first cycle's.

    Args:
        step: 0 or more.
        length: steps of the first cycle, above 0.
        mul: length of a cycle over that of the one before, above 0. Below 1 all cycles together end after
            ``length / (1 - mul)`` steps: from there on it is the cycle with number -1.
    """

    def start(index: int) -> float:
        return index * length if mul == 1.0 else length * (mul**index - 1.0) / (mul - 1.0)

    if mul == 1.0:
        index = int(step // length)
    else:
        inside = 1.0 + step / length * (mul - 1.0)
        if inside <= 2 * _ON_BOUNDARY:
            return -1, step, 1.0
        index = int(math.log(inside, mul))
    near = step * (1.0 + _ON_BOUNDARY)
    while start(index + 1) <= near:
        index += 1
    while start(index) > near:
        index -= 1
    first = start(index)
    return index, step if first >= step * (1.0 - _ON_BOUNDARY) else first, mul**index


@frozen
class Cycles(Over):
    """A curve again and again. Cycle i takes ``length * mul ** i`` steps; after ``count`` cycles the curve's end stays.

    Args:
        curve: the curve of the first cycle; it must have an end.
        count: how many cycles, 1 or more; None is for ever.
        mul: length of a cycle over that of the one before, above 0.
    """

    count: int | None = whole(default=None, at_least=1)
    mul: float = real(default=1.0, above=0)

    def __post_init__(self) -> None:
        if not self.curve.length:
            raise ValueError(f"only a curve with an end can be repeated, got {self.curve!r}; say until(STEP) first")
        super().__post_init__()

    def value(self, step: float) -> float:
        assert self.curve.length
        index, start, scale = cycle_at(step, self.curve.length, self.mul)
        if index < 0 or (self.count is not None and index >= self.count):
            return self.curve.value(self.curve.length)
        return self.curve.value((step - start) / scale)

    @property
    def length(self) -> float | None:
        assert self.curve.length
        if self.count is None:
            return None
        if self.mul == 1.0:
            return self.curve.length * self.count
        try:
            return self.curve.length * (self.mul**self.count - 1.0) / (self.mul - 1.0)
        except OverflowError:
            return math.inf


@frozen
class Noise(Over):
    """``curve(step) * (1 + n)``, n drawn for every step by itself, so any step can be asked for.

    Args:
        curve: the curve.
        start: first step with noise.
        stop: first step without it again; None: no such step.
        limit: bound of n, above 0. A normal n outside is drawn again.
        std: standard deviation of a normal n, above 0 and at most 1000 times the limit: beyond, next to all draws would
            be drawn again.
        seed: the generator of step t has the seed ``seed + t``.
        kind: "normal", or "uniform" in [-limit, limit].

    Source: the noise of timm's schedulers, https://github.com/huggingface/pytorch-image-models.
    """

    start: float = real(at_least=0)
    stop: float | None = real(default=None)
    limit: float = real(default=0.67, above=0)
    std: float = real(default=1.0, above=0)
    seed: int = whole(default=42)
    kind: str = one_of(("normal", "uniform"), default="normal")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop is not None:
            real_number("stop", self.stop, at_least=self.start)
        if self.kind == "normal" and self.std > 1000 * self.limit:
            raise ValueError(
                f"std (noise_std) {self.std:g} is more than 1000 times limit (noise_pct) {self.limit:g}: next to every "
                "draw would be outside of the bound and drawn again; lower the one or raise the other"
            )

    def value(self, step: float) -> float:
        plain = self.curve.value(step)
        if step < self.start or (self.stop is not None and step >= self.stop):
            return plain
        return plain * (1.0 + self.drawn(step))

    def drawn(self, step: float) -> float:
        """Return the n of a step."""
        return _drawn(self.kind, self.seed + int(step), self.limit, self.std)


# All groups have the same noise at a step: it is drawn for the first of them.
@functools.lru_cache(maxsize=16)
def _drawn(kind: str, seed: int, limit: float, std: float) -> float:
    generator = torch.Generator("cpu").manual_seed(seed)
    if kind == "uniform":
        return 2.0 * (torch.rand(1, generator=generator, dtype=torch.float32, device="cpu").item() - 0.5) * limit
    while True:
        noise = torch.randn(1, generator=generator, dtype=torch.float32, device="cpu").item() * std
        if abs(noise) < limit:
            return noise
