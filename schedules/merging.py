"""Weights with which checkpoints of a run without a decay are averaged, as if there had been one (WSM)."""

from __future__ import annotations

from .checks import real_number, whole_number
from .curves import Curve
from .shapes import falling


def merge_weights(count: int, decay: str | Curve = "linear", to: float = 0.0) -> list[float]:
    """Weights of the last checkpoints of a run, the oldest first, whose average is what a decay would have led to.

    With the multiplier f(x) of the decay, x the share of it that is done, and m checkpoints at equal distances:

        c_j = f(j / m) - f((j + 1) / m)  for j = 0 .. m - 2,   c_(m - 1) = f((m - 1) / m)

    They are 0 or more and add up to 1. The updates between checkpoint j - 1 and j are in the average with
    ``c_j + ... + c_(m - 1) = f(j / m)``, as if the learning rate had fallen there, but for what the later gradients
    would have been. A line makes all weights equal. The learning rate itself stays: ``constant_with_warmup``, which
    is also called ``wsm``.

    Args:
        count: m, how many checkpoints, 1 or more.
        decay: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``, as those of ``warmup_stable_decay``;
            or a curve that only falls, from 1, and has an end.
        to: for a decay by its name, where it ends, from 0 to 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or the curve rises, does not begin
            with 1 or has no end.

    Source: WSM, https://arxiv.org/abs/2507.17634.
    """
    number = whole_number("count", count, at_least=1)
    curve = decay if isinstance(decay, Curve) else falling(decay, 1, real_number("to", to, at_least=0, at_most=1))
    if not curve.length:
        raise ValueError(f"decay must have an end, got {decay!r}; say until(STEP) first")
    levels = [curve(place / number * curve.length) for place in range(number)]
    if abs(levels[0] - 1.0) > 1e-9:
        raise ValueError(f"decay must begin with 1, got {decay!r}, which begins with {levels[0]:g}")
    weights = [before - after for before, after in zip(levels, [*levels[1:], 0.0], strict=True)]
    if min(weights) < -1e-12:
        raise ValueError(f"decay must not rise, got {decay!r}")
    return [max(0.0, weight) for weight in weights]
