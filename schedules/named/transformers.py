"""The schedules of transformers, with its signatures: ``last_epoch`` may be given by position.

Common to all with a warm-up: before step W the lr is ``lr * step / W``, so the first step has lr 0. Common to all with
a total: from step T on, the lr stays at its end value. If the warm-up is longer than the total, the lr stops rising at
the total. A number of warm-up or decay steps above 0 and below 1 is a share of the total, rounded up.
"""

from __future__ import annotations

from ..checks import choice, real_number, steps_or_share, warn, whole_number
from ..curves import Constant, Curve
from ..shapes import DECAYS, RAMPS, Cosine, CosineRestarts, InverseSqrt, Linear, Polynomial, Ramp, falling
from ..table import Lengths, checked_lengths, from_zero, schedule


@schedule("linear", "warm-up, then a line to 0", rise=from_zero)
def get_linear_schedule_with_warmup(lengths: Lengths) -> Curve:
    """Warm up, then fall to 0 on a line: ``lr(t) = lr * (T - t) / (T - W)`` for W <= t <= T.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
    """
    return Linear(lengths.rest)


@schedule("cosine", "warm-up, then half a cosine to 0", rise=from_zero)
def get_cosine_schedule_with_warmup(lengths: Lengths, num_cycles: float = 0.5) -> Curve:
    """Warm up, then follow a cosine: ``lr(t) = lr * (1 + cos(2 pi c (t - W) / (T - W))) / 2`` for W <= t <= T.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: c, waves between W and T, 0 or more. Half a wave falls to 0 once and stays there; a whole wave
            comes back to the peak and stays there.

    Source: SGDR, https://arxiv.org/abs/1608.03983, equation 5.
    """
    return Cosine(lengths.rest, num_cycles)


@schedule("cosine_with_restarts", "warm-up, then half cosines to 0, each starting at the peak again", rise=from_zero)
def get_cosine_with_hard_restarts_schedule_with_warmup(lengths: Lengths, num_cycles: int = 1) -> Curve:
    """Warm up, then half cosines with restarts: ``lr(t) = lr * (1 + cos(pi (c x mod 1))) / 2``, x = (t - W)/(T - W).

    At a restart the lr jumps to its peak; from T on it is 0.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: c, how many half cosines, 1 or more. There are c - 1 restarts: with 1 there is none.

    Source: SGDR, https://arxiv.org/abs/1608.03983, with cycles of equal length.
    """
    return CosineRestarts(lengths.rest, num_cycles)


@schedule("polynomial", "warm-up, then a power of the remaining share, down to lr_end", rise=from_zero)
def get_polynomial_decay_schedule_with_warmup(lengths: Lengths, lr_end: float = 1e-7, power: float = 1.0) -> Curve:
    """Warm up, then ``lr(t) = (lr - lr_end) * ((T - t) / (T - W)) ** power + lr_end`` for W <= t <= T.

    Every param group ends at ``lr_end``, whatever its own lr; a group with lr 0 stays at 0.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        lr_end: the learning rate at the end, absolute, at most the smallest initial lr.
        power: above 0; 1 is a line, 2 falls early.

    Raises:
        ValueError: ``lr_end`` is above a group's initial lr.

    Source: the schedule of BERT, https://github.com/google-research/bert/blob/master/optimization.py.
    """
    return Polynomial(lengths.rest, power).floor_lr(real_number("lr_end", lr_end, at_least=0))


@schedule("constant", "the initial learning rate throughout")
def get_constant_schedule() -> Curve:
    """Keep the learning rate: ``lr(t) = lr``."""
    return Constant()


@schedule("constant_with_warmup", "warm-up, then the initial learning rate", aliases=["wsm"])
def get_constant_schedule_with_warmup(num_warmup_steps: int) -> Curve:
    """Warm up, then keep the learning rate: ``lr(t) = lr * min(1, t / num_warmup_steps)``.

    Args:
        num_warmup_steps: steps of warm-up, 0 or more.
    """
    return from_zero(Constant(), whole_number("num_warmup_steps", num_warmup_steps))


@schedule("inverse_sqrt", "warm-up, then one over the root of the steps, no end")
def get_inverse_sqrt_schedule(num_warmup_steps: int, timescale: int | None = None) -> Curve:
    """Warm up, then ``lr(t) = lr / sqrt((t - W + timescale) / timescale)``. It has no end.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        timescale: steps after the warm-up in which the lr falls to 1 / sqrt(2); above 0. Default: W, or 10 000 if W
            is 0.

    Source: Scaling Vision Transformers, https://arxiv.org/abs/2106.04560 (big_vision's ``rsqrt``).
    """
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
    scale = warmup or 10_000 if timescale is None else real_number("timescale", timescale, above=0)
    return from_zero(InverseSqrt(scale), warmup)


def _floored_cosine(steps: int, num_cycles: float, min_lr: float | None, min_lr_rate: float | None) -> Curve:
    curve = Cosine(steps, num_cycles)
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


@schedule(
    "cosine_with_min_lr",
    "warm-up, then half a cosine to min_lr or min_lr_rate (one is required)",
    rise=from_zero,
    last_epoch_after="num_cycles",
)
def get_cosine_with_min_lr_schedule_with_warmup(
    lengths: Lengths, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None
) -> Curve:
    """Warm up, then a cosine that ends at a floor: ``lr(t) = m + (lr - m) * cosine(t)``.

    Args:
        num_warmup_steps: steps of warm-up from 0, 0 or more.
        num_training_steps: steps of the whole schedule, warm-up included.
        num_cycles: waves after the warm-up, see :func:`get_cosine_schedule_with_warmup`.
        min_lr: m as an absolute learning rate, the same in every param group (a group with lr 0 stays at 0).
        min_lr_rate: m as a share of each group's initial lr, from 0 to 1. Give exactly one of the two.

    Raises:
        ValueError: none or both of ``min_lr`` and ``min_lr_rate`` are given, or ``min_lr`` is above a group's lr.
    """
    return _floored_cosine(lengths.rest, num_cycles, min_lr, min_lr_rate)


@schedule(
    "cosine_warmup_with_min_lr",
    "the same a step earlier: the warm-up starts above 0, the last step has min_lr or min_lr_rate",
    last_epoch_after="num_cycles",
)
def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    lengths: Lengths,
    num_cycles: float = 0.5,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Curve:
    """Warm up from above 0, then a cosine that ends at a floor one step earlier.

    ``lr(t) = lr * (t + 1) / W`` for t < W, then ``lr(t) = m + (lr - m) * cosine(t + 1)``: step W - 1 has the peak, step
    T - 1 the floor. With ``warmup_lr_rate`` r the warm-up is ``lr * (r + (1 - r) * t / (W - 1))``.

    Args:
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: waves after the warm-up, see :func:`get_cosine_schedule_with_warmup`.
        min_lr: m as an absolute learning rate, the same in every param group (a group with lr 0 stays at 0).
        min_lr_rate: m as a share of each group's initial lr, from 0 to 1. Give exactly one of the two.
        warmup_lr_rate: share of the initial lr at step 0, from 0 to 1. Default: 1 / W.

    Raises:
        ValueError: none or both of ``min_lr`` and ``min_lr_rate`` are given, or ``min_lr`` is above a group's lr.
    """
    warmup = lengths.warmup
    if warmup_lr_rate is None:
        ramp: Curve = Ramp(warmup).ahead(1)
    else:
        start = real_number("warmup_lr_rate", warmup_lr_rate, at_least=0, at_most=1)
        ramp = Ramp(max(0, warmup - 1), start=start)
    decay = _floored_cosine(lengths.rest, num_cycles, min_lr, min_lr_rate).ahead(1)
    return ramp.then(decay, at=warmup)


@schedule("warmup_stable_decay", "warm-up, the initial learning rate, then num_decay_steps of decay", aliases=["wsd"])
def get_wsd_schedule(
    num_warmup_steps: int | float,
    num_decay_steps: int | float,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
) -> Curve:
    """Warm up, stay, decay: ``lr(t) = lr * (r + (1 - r) * f(x))``, x the share done of the warm-up or of the decay.

    Warm-up f: ``linear`` x, ``cosine`` (1 - cos(pi x)) / 2, ``1-sqrt`` 1 - sqrt(1 - x). Decay f: ``linear`` 1 - x,
    ``cosine`` (1 + cos(2 pi c x)) / 2, ``1-sqrt`` 1 - sqrt(x), ``1-square`` 1 - x ** 2, ``exponential``
    (q ** x - q) / (1 - q) with q = r, so that the lr is ``lr * r ** x``, or q = 0.1 if r is 0. After the decay the lr
    is ``r * lr``.

    Args:
        num_warmup_steps: steps of warm-up, 0 or more, or a share of the total. It starts at ``r * lr``.
        num_decay_steps: steps of decay, 0 or more, or a share of the total.
        num_training_steps: steps of the whole schedule. It gives the stable steps where these are not given. A total
            too short for warm-up and decay cuts the beginning of the decay off.
        num_stable_steps: steps at the full lr, 0 or more. It wins over ``num_training_steps``.
        warmup_type: ``linear``, ``cosine`` or ``1-sqrt``.
        decay_type: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``.
        min_lr_ratio: r, share of the initial lr at both ends, from 0 to 1.
        num_cycles: c, waves of a cosine decay, 0 or more.

    Raises:
        ValueError: neither ``num_training_steps`` nor ``num_stable_steps`` is given, or a type is unknown.

    Source: MiniCPM, https://arxiv.org/abs/2404.06395, and for ``1-sqrt`` https://arxiv.org/abs/2405.18392.
    """
    warmup, total = checked_lengths(num_warmup_steps, num_training_steps)
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
