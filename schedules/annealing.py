"""Annealing: from some step on, down to a share of the value there, whatever the curve would have done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .checks import real_number, whole_number
from .curves import Curve
from .shapes import falling

__all__ = ["Annealed", "annealed", "with_annealings"]


@dataclass(frozen=True)
class Annealed(Curve):
    """``curve(step)`` before step ``start``, ``fall(step - start) * curve(start)`` from there on.

    One node that holds the curve once: annealed again and again, it grows by a node each time and does not double.
    """

    curve: Curve
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


def with_annealings(curve: Curve, annealings: Iterable[Mapping[str, Any]]) -> Curve:
    """Return the curve after all annealings that were asked for, each as the arguments of :func:`annealed`.

    Raises:
        TypeError, ValueError: one of them does not hold these arguments.
    """
    for each in annealings:
        curve = annealed(curve, **each)
    return curve
