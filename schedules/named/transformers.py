"""The curves of transformers' schedules. Their arguments are explained in :mod:`schedules.factories`.

Common to all with a warm-up: before step W the multiplier is ``step / W``. Common to all with a total: from step T on
it stays where it is. If the warm-up is longer than the total, it stops rising at the total.
"""

from __future__ import annotations

from ..checks import choice, real_number, steps_or_share, warn, whole_number
from ..curves import Curve
from ..shapes import (
    DECAYS,
    RAMPS,
    Constant,
    Cosine,
    CosineRestarts,
    InverseSqrt,
    Linear,
    Polynomial,
    Ramp,
    falling,
)

__all__ = [
    "constant_curve",
    "constant_with_warmup_curve",
    "cosine_curve",
    "cosine_warmup_with_min_lr_curve",
    "cosine_with_min_lr_curve",
    "cosine_with_restarts_curve",
    "inverse_sqrt_curve",
    "lengths",
    "linear_curve",
    "polynomial_curve",
    "wsd_curve",
]


def lengths(num_warmup_steps: int | float, num_training_steps: int) -> tuple[int, int, int]:
    """Return the checked warm-up, total, and what is left between them for the decay.

    The warm-up may be a share of the total, above 0 and below 1, which is rounded up to whole steps.
    """
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps)
    total = whole_number("num_training_steps", num_training_steps)
    return warmup, total, max(0, total - warmup)


def _floored(curve: Curve, min_lr: float | None, min_lr_rate: float | None) -> Curve:
    if min_lr is not None and min_lr_rate is not None:
        raise ValueError(f"give min_lr or min_lr_rate, not both; got min_lr={min_lr!r}, min_lr_rate={min_lr_rate!r}")
    if min_lr is not None:
        return curve.floor_lr(real_number("min_lr", min_lr, at_least=0))
    if min_lr_rate is not None:
        return curve.floor(real_number("min_lr_rate", min_lr_rate, at_least=0, at_most=1))
    raise ValueError(
        "min_lr (a learning rate) or min_lr_rate (a share of the initial one) is required; "
        "by name they go into scheduler_specific_kwargs, in Trainer into lr_scheduler_kwargs"
    )


def constant_curve() -> Curve:
    """``1``."""
    return Constant()


def constant_with_warmup_curve(num_warmup_steps: int) -> Curve:
    """``min(1, t / W)``."""
    return Ramp(whole_number("num_warmup_steps", num_warmup_steps)).then(Constant())


def linear_curve(num_warmup_steps: int | float, num_training_steps: int) -> Curve:
    """``(T - t) / (T - W)`` after the warm-up."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    return Ramp(warmup).then(Linear(rest)).until(total)


def cosine_curve(num_warmup_steps: int | float, num_training_steps: int, num_cycles: float = 0.5) -> Curve:
    """``(1 + cos(2 pi c (t - W) / (T - W))) / 2`` after the warm-up, c = ``num_cycles``."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    return Ramp(warmup).then(Cosine(rest, num_cycles)).until(total)


def cosine_with_restarts_curve(num_warmup_steps: int | float, num_training_steps: int, num_cycles: int = 1) -> Curve:
    """``(1 + cos(pi (c x mod 1))) / 2`` after the warm-up, x = (t - W)/(T - W), c = ``num_cycles``."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    cycles = whole_number("num_cycles", num_cycles, at_least=1)
    return Ramp(warmup).then(CosineRestarts(rest, cycles)).until(total)


def polynomial_curve(
    num_warmup_steps: int | float, num_training_steps: int, lr_end: float = 1e-7, power: float = 1.0
) -> Curve:
    """``((T - t) / (T - W)) ** power`` after the warm-up, from the initial learning rate to ``lr_end``."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    decay = Polynomial(rest, power).floor_lr(real_number("lr_end", lr_end, at_least=0))
    return Ramp(warmup).then(decay).until(total)


def inverse_sqrt_curve(num_warmup_steps: int, timescale: int | None = None) -> Curve:
    """``1 / sqrt((t - W + timescale) / timescale)`` after the warm-up."""
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
    scale = warmup or 10_000 if timescale is None else real_number("timescale", timescale, above=0)
    return Ramp(warmup).then(InverseSqrt(scale))


def cosine_with_min_lr_curve(
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> Curve:
    """:func:`cosine_curve`, with a floor in place of 0."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    return Ramp(warmup).then(_floored(Cosine(rest, num_cycles), min_lr, min_lr_rate)).until(total)


def cosine_warmup_with_min_lr_curve(
    num_warmup_steps: int | float,
    num_training_steps: int,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Curve:
    """:func:`cosine_with_min_lr_curve`, one step ahead; its warm-up starts at ``warmup_lr_rate``, by default 1 / W."""
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    if warmup_lr_rate is None:
        ramp: Curve = Ramp(warmup).ahead(1)
    else:
        start = real_number("warmup_lr_rate", warmup_lr_rate, at_least=0, at_most=1)
        ramp = Ramp(max(0, warmup - 1), start=start)
    decay = _floored(Cosine(rest, num_cycles), min_lr, min_lr_rate).ahead(1)
    return ramp.then(decay, at=warmup).until(total)


def wsd_curve(
    num_warmup_steps: int | float,
    num_decay_steps: int | float,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
) -> Curve:
    """Up, level, down: see :func:`schedules.factories.get_wsd_schedule`."""
    total = None if num_training_steps is None else whole_number("num_training_steps", num_training_steps)
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, total)
    decay = steps_or_share("num_decay_steps", num_decay_steps, total)
    choice("warmup_type", warmup_type, RAMPS)
    choice("decay_type", decay_type, DECAYS)
    ratio = real_number("min_lr_ratio", min_lr_ratio, at_least=0, at_most=1)
    real_number("num_cycles", num_cycles, at_least=0)

    if num_stable_steps is not None:
        stable = whole_number("num_stable_steps", num_stable_steps)
        if total is not None and warmup + stable + decay != total:
            warn(
                f"num_stable_steps={stable} wins over num_training_steps={total}: the schedule ends at step "
                f"{warmup + stable + decay}"
            )
    elif total is not None:
        stable = total - warmup - decay
    else:
        raise ValueError("num_training_steps or num_stable_steps is required")

    skipped = max(0, -stable)
    fall = falling(decay_type, decay, ratio, num_cycles)
    fall = fall.ahead(skipped).then(Constant(ratio), at=max(0, decay - skipped))
    rising = Ramp(warmup, start=ratio, shape=warmup_type)
    curve = rising.then(Constant().then(fall, at=max(0, stable)))
    return curve.until(warmup + stable + decay)
