"""What the named curves have in common: a warm-up to any curve, absolute learning rates, an end."""

from __future__ import annotations

from ..checks import real_number, steps_or_share, whole_number
from ..curves import Absolute, Curve
from ..shapes import Ramp

__all__ = ["fitted", "spanned", "warmed"]


def warmed(curve: Curve, warmup: int) -> Curve:
    """Put a warm-up from 0 to the curve's first value before a curve: ``curve(0) * t / W``, then ``curve(t - W)``."""
    return (Ramp(warmup) * curve.until(0)).then(curve, at=warmup) if warmup else curve


def fitted(curve: Curve, num_warmup_steps: int | float, num_training_steps: int | None) -> Curve:
    """Put a warm-up before a curve and let it stay at its value of step T, if there is a T."""
    curve = warmed(curve, steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps))
    if num_training_steps is None:
        return curve
    return curve.until(whole_number("num_training_steps", num_training_steps))


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
