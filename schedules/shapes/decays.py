"""The ways down from 1: one list for everything that anneals (warmup_stable_decay, power, infinite, anneal)."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import choice, real_number
from ..curves import Curve
from .basic import Cosine, Exponential, OneMinusSqrt, Polynomial, Timed

__all__ = ["DECAYS", "OneMinusSquare", "falling"]

DECAYS = ("linear", "cosine", "1-sqrt", "1-square", "exponential")


@dataclass(frozen=True)
class OneMinusSquare(Timed):
    """From 1 to 0 by ``1 - (step / steps) ** 2``: slow at first."""

    def value(self, step: float) -> float:
        return 1.0 - self.progress(step) ** 2


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
