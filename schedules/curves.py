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

from abc import ABC, abstractmethod
from dataclasses import dataclass

from .checks import real_number

__all__ = ["Ahead", "Curve", "Floor", "FloorLR", "Then", "Until"]


class Curve(ABC):
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
            ValueError: ``step`` is negative or NaN.
        """
        if not step >= 0:
            raise ValueError(f"step must be at least 0, got {step!r}")
        return self.value(step)

    @property
    def length(self) -> float | None:
        """How many steps the curve takes, or None if it never ends."""
        return None

    def bind(self, initial_lr: float) -> Curve:
        """Return the curve for a param group with this initial learning rate.

        Only curves that hold an absolute learning rate (:class:`FloorLR`) differ from group to group.
        """
        return self

    def then(self, following: Curve, at: float | None = None) -> Then:
        """Follow this curve for ``at`` steps (default: its length), then ``following``, which counts from 0 there."""
        if at is None:
            at = self.length
        if at is None:
            raise ValueError(f"{self!r} never ends: say at which step the next curve starts, then(..., at=STEP)")
        return Then(self, following, at)

    def floor(self, rate: float) -> Floor:
        """Squeeze the curve's range from [0, 1] to [``rate``, 1]."""
        return Floor(self, rate)

    def floor_lr(self, lr: float) -> FloorLR:
        """Squeeze the curve so that 0 stands for the absolute learning rate ``lr`` in every param group."""
        return FloorLR(self, lr)

    def ahead(self, steps: float) -> Ahead:
        """Run the curve ``steps`` steps ahead of the count."""
        return Ahead(self, steps)

    def until(self, last_step: float) -> Until:
        """Stop the count at ``last_step``: every later step has its value."""
        return Until(self, last_step)


@dataclass(frozen=True)
class Then(Curve):
    """One curve after another: ``first(step)`` before step ``at``, ``second(step - at)`` from there on."""

    first: Curve
    second: Curve
    at: float

    def __post_init__(self) -> None:
        real_number("at", self.at, at_least=0)

    def value(self, step: float) -> float:
        return self.first.value(step) if step < self.at else self.second.value(step - self.at)

    @property
    def length(self) -> float | None:
        return None if self.second.length is None else self.at + self.second.length

    def bind(self, initial_lr: float) -> Then:
        return Then(self.first.bind(initial_lr), self.second.bind(initial_lr), self.at)


@dataclass(frozen=True)
class Floor(Curve):
    """``rate + (1 - rate) * curve(step)``: the same curve, ending at ``rate`` instead of 0."""

    curve: Curve
    rate: float

    def __post_init__(self) -> None:
        real_number("rate", self.rate, at_least=0, at_most=1)

    def value(self, step: float) -> float:
        return self.curve.value(step) * (1.0 - self.rate) + self.rate

    @property
    def length(self) -> float | None:
        return self.curve.length

    def bind(self, initial_lr: float) -> Floor:
        return Floor(self.curve.bind(initial_lr), self.rate)


@dataclass(frozen=True)
class FloorLR(Curve):
    """A floor given as an absolute learning rate: it becomes a :class:`Floor` once a group's initial lr is known.

    A group whose initial lr is 0 is frozen and stays at 0: the floor does not wake it.
    """

    curve: Curve
    lr: float

    def __post_init__(self) -> None:
        real_number("lr", self.lr, at_least=0)

    def value(self, step: float) -> float:
        raise TypeError(f"a floor of lr={self.lr:g} needs the group's initial lr: call bind(initial_lr) first")

    @property
    def length(self) -> float | None:
        return self.curve.length

    def bind(self, initial_lr: float) -> Floor:
        if initial_lr != 0 and not self.lr <= initial_lr:
            raise ValueError(
                f"the end value (min_lr or lr_end) {self.lr:g} is above the initial lr {initial_lr:g}: "
                "lower it, raise the group's lr, or give the floor as a rate (min_lr_rate)"
            )
        return Floor(self.curve.bind(initial_lr), self.lr / initial_lr if initial_lr else 0.0)


@dataclass(frozen=True)
class Ahead(Curve):
    """``curve(step + steps)``: the curve enters ``steps`` steps in."""

    curve: Curve
    steps: float

    def __post_init__(self) -> None:
        real_number("steps", self.steps, at_least=0)

    def value(self, step: float) -> float:
        return self.curve.value(step + self.steps)

    @property
    def length(self) -> float | None:
        return None if self.curve.length is None else max(0, self.curve.length - self.steps)

    def bind(self, initial_lr: float) -> Ahead:
        return Ahead(self.curve.bind(initial_lr), self.steps)


@dataclass(frozen=True)
class Until(Curve):
    """``curve(min(step, last_step))``: the learning rate stays where it is at ``last_step``."""

    curve: Curve
    last_step: float

    def __post_init__(self) -> None:
        real_number("last_step", self.last_step, at_least=0)

    def value(self, step: float) -> float:
        return self.curve.value(min(step, self.last_step))

    @property
    def length(self) -> float | None:
        return self.last_step

    def bind(self, initial_lr: float) -> Until:
        return Until(self.curve.bind(initial_lr), self.last_step)
