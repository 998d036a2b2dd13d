"""One function per schedule, with the signatures of transformers.

Each returns a torch scheduler over a curve. Common to all with a warm-up: before step ``num_warmup_steps`` the lr is
``lr * step / num_warmup_steps``, so the first step has lr 0. Common to all with a total: from step
``num_training_steps`` on, the lr stays at its end value. If the warm-up is longer than the total, the lr stops rising
at the total.
"""

from __future__ import annotations

import warnings

from torch.optim import Optimizer

from .checks import choice, real_number, whole_number
from .curves import Curve
from .scheduler import ScheduleLR
from .shapes import RAMPS, Constant, Cosine, CosineRestarts, InverseSqrt, Linear, OneMinusSqrt, Polynomial, Ramp

__all__ = [
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_inverse_sqrt_schedule",
    "get_linear_schedule_with_warmup",
    "get_polynomial_decay_schedule_with_warmup",
    "get_wsd_schedule",
]


def _lengths(num_warmup_steps: int, num_training_steps: int) -> tuple[int, int, int]:
    """Return the checked warm-up, total, and what is left between them for the decay."""
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
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


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> ScheduleLR:
    """Keep the learning rate: ``lr(t) = lr``.

    Args:
        optimizer: the optimizer to drive.
        last_epoch: the last step done; -1 for a new run.
    """
    return ScheduleLR(optimizer, Constant(), last_epoch)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> ScheduleLR:
    """Warm up, then keep the learning rate: ``lr(t) = lr * min(1, t / num_warmup_steps)``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up, 0 or more.
        last_epoch: the last step done; -1 for a new run.
    """
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
    return ScheduleLR(optimizer, Ramp(warmup).then(Constant()), last_epoch)


def get_linear_schedule_with_warmup(
    optimizer: Optimizer, num_warmup_steps: int, num_training_steps: int, last_epoch: int = -1
) -> ScheduleLR:
    """Warm up, then fall to 0 on a line: ``lr(t) = lr * (T - t) / (T - W)`` for W <= t <= T.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        last_epoch: the last step done; -1 for a new run.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    return ScheduleLR(optimizer, Ramp(warmup).then(Linear(rest)).until(total), last_epoch)


def get_cosine_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> ScheduleLR:
    """Warm up, then follow a cosine: ``lr(t) = lr * (1 + cos(2 pi c (t - W) / (T - W))) / 2`` for W <= t <= T.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: c, waves between W and T, 0 or more. Half a wave falls to 0 once and stays there; a whole wave
            comes back to the peak and stays there.
        last_epoch: the last step done; -1 for a new run.

    Source: SGDR, https://arxiv.org/abs/1608.03983, equation 5.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    return ScheduleLR(optimizer, Ramp(warmup).then(Cosine(rest, num_cycles)).until(total), last_epoch)


def get_cosine_with_hard_restarts_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: int = 1,
    last_epoch: int = -1,
) -> ScheduleLR:
    """Warm up, then half cosines with restarts: ``lr(t) = lr * (1 + cos(pi (c x mod 1))) / 2``, x = (t - W)/(T - W).

    At a restart the lr jumps to its peak; from T on it is 0.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: c, how many half cosines, 1 or more. There are c - 1 restarts: with 1 there is none.
        last_epoch: the last step done; -1 for a new run.

    Source: SGDR, https://arxiv.org/abs/1608.03983, with cycles of equal length.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    cycles = whole_number("num_cycles", num_cycles, at_least=1)
    return ScheduleLR(optimizer, Ramp(warmup).then(CosineRestarts(rest, cycles)).until(total), last_epoch)


def get_polynomial_decay_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    lr_end: float = 1e-7,
    power: float = 1.0,
    last_epoch: int = -1,
) -> ScheduleLR:
    """Warm up, then ``lr(t) = (lr - lr_end) * ((T - t) / (T - W)) ** power + lr_end`` for W <= t <= T.

    Every param group ends at ``lr_end``, whatever its own lr; a group with lr 0 stays at 0.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        lr_end: the learning rate at the end, absolute, at most the smallest initial lr.
        power: above 0; 1 is a line, 2 falls early.
        last_epoch: the last step done; -1 for a new run.

    Raises:
        ValueError: ``lr_end`` is above a group's initial lr.

    Source: the schedule of BERT, https://github.com/google-research/bert/blob/master/optimization.py.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    decay = Polynomial(rest, power).floor_lr(real_number("lr_end", lr_end, at_least=0))
    return ScheduleLR(optimizer, Ramp(warmup).then(decay).until(total), last_epoch)


def get_inverse_sqrt_schedule(
    optimizer: Optimizer, num_warmup_steps: int, timescale: int | None = None, last_epoch: int = -1
) -> ScheduleLR:
    """Warm up, then ``lr(t) = lr / sqrt((t - W + timescale) / timescale)``. It has no end.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        timescale: steps after the warm-up in which the lr falls to 1 / sqrt(2); above 0. Default: W, or 10 000 if W
            is 0.
        last_epoch: the last step done; -1 for a new run.

    Source: Scaling Vision Transformers, https://arxiv.org/abs/2106.04560 (big_vision's ``rsqrt``).
    """
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
    scale = warmup or 10_000 if timescale is None else real_number("timescale", timescale, above=0)
    return ScheduleLR(optimizer, Ramp(warmup).then(InverseSqrt(scale)), last_epoch)


def get_cosine_with_min_lr_schedule_with_warmup(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
) -> ScheduleLR:
    """Warm up, then a cosine that ends at a floor: ``lr(t) = m + (lr - m) * cosine(t)``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up from 0, 0 or more.
        num_training_steps: steps of the whole schedule, warm-up included.
        num_cycles: waves after the warm-up, see :func:`get_cosine_schedule_with_warmup`.
        last_epoch: the last step done; -1 for a new run.
        min_lr: m as an absolute learning rate, the same in every param group (a group with lr 0 stays at 0).
        min_lr_rate: m as a share of each group's initial lr, from 0 to 1. Give exactly one of the two.

    Raises:
        ValueError: none or both of ``min_lr`` and ``min_lr_rate`` are given, or ``min_lr`` is above a group's lr.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    decay = _floored(Cosine(rest, num_cycles), min_lr, min_lr_rate)
    return ScheduleLR(optimizer, Ramp(warmup).then(decay).until(total), last_epoch)


def get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_training_steps: int,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
    min_lr: float | None = None,
    min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> ScheduleLR:
    """Warm up from above 0, then a cosine that ends at a floor one step earlier.

    ``lr(t) = lr * (t + 1) / W`` for t < W, then ``lr(t) = m + (lr - m) * cosine(t + 1)``: step W - 1 has the peak, step
    T - 1 the floor. With ``warmup_lr_rate`` r the warm-up is ``lr * (r + (1 - r) * t / (W - 1))``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: W, steps of warm-up, 0 or more.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        num_cycles: waves after the warm-up, see :func:`get_cosine_schedule_with_warmup`.
        last_epoch: the last step done; -1 for a new run.
        min_lr: m as an absolute learning rate, the same in every param group (a group with lr 0 stays at 0).
        min_lr_rate: m as a share of each group's initial lr, from 0 to 1. Give exactly one of the two.
        warmup_lr_rate: share of the initial lr at step 0, from 0 to 1. Default: 1 / W.

    Raises:
        ValueError: none or both of ``min_lr`` and ``min_lr_rate`` are given, or ``min_lr`` is above a group's lr.
    """
    warmup, total, rest = _lengths(num_warmup_steps, num_training_steps)
    if warmup_lr_rate is None:
        ramp: Curve = Ramp(warmup).ahead(1)
    else:
        start = real_number("warmup_lr_rate", warmup_lr_rate, at_least=0, at_most=1)
        ramp = Ramp(max(0, warmup - 1), start=start)
    decay = _floored(Cosine(rest, num_cycles), min_lr, min_lr_rate).ahead(1)
    return ScheduleLR(optimizer, ramp.then(decay, at=warmup).until(total), last_epoch)


def get_wsd_schedule(
    optimizer: Optimizer,
    num_warmup_steps: int,
    num_decay_steps: int,
    num_training_steps: int | None = None,
    num_stable_steps: int | None = None,
    warmup_type: str = "linear",
    decay_type: str = "cosine",
    min_lr_ratio: float = 0,
    num_cycles: float = 0.5,
    last_epoch: int = -1,
) -> ScheduleLR:
    """Warm up, stay, decay: ``lr(t) = lr * (r + (1 - r) * f(x))``, x the share done of the warm-up or of the decay.

    Warm-up f: ``linear`` x, ``cosine`` (1 - cos(pi x)) / 2, ``1-sqrt`` 1 - sqrt(1 - x). Decay f: ``linear`` 1 - x,
    ``cosine`` (1 + cos(2 pi c x)) / 2, ``1-sqrt`` 1 - sqrt(x). After the decay the lr is ``r * lr``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up, 0 or more. It starts at ``r * lr``.
        num_decay_steps: steps of decay, 0 or more.
        num_training_steps: steps of the whole schedule. It gives the stable steps where these are not given. A total
            too short for warm-up and decay cuts the beginning of the decay off.
        num_stable_steps: steps at the full lr, 0 or more. It wins over ``num_training_steps``.
        warmup_type: ``linear``, ``cosine`` or ``1-sqrt``.
        decay_type: ``linear``, ``cosine`` or ``1-sqrt``.
        min_lr_ratio: r, share of the initial lr at both ends, from 0 to 1.
        num_cycles: c, waves of a cosine decay, 0 or more.
        last_epoch: the last step done; -1 for a new run.

    Raises:
        ValueError: neither ``num_training_steps`` nor ``num_stable_steps`` is given, or a type is unknown.

    Source: MiniCPM, https://arxiv.org/abs/2404.06395, and for ``1-sqrt`` https://arxiv.org/abs/2405.18392.
    """
    warmup = whole_number("num_warmup_steps", num_warmup_steps)
    decay = whole_number("num_decay_steps", num_decay_steps)
    total = None if num_training_steps is None else whole_number("num_training_steps", num_training_steps)
    choice("warmup_type", warmup_type, RAMPS)
    choice("decay_type", decay_type, RAMPS)
    ratio = real_number("min_lr_ratio", min_lr_ratio, at_least=0, at_most=1)
    real_number("num_cycles", num_cycles, at_least=0)

    if num_stable_steps is not None:
        stable = whole_number("num_stable_steps", num_stable_steps)
        if total is not None and warmup + stable + decay != total:
            warnings.warn(
                f"num_stable_steps={stable} wins over num_training_steps={total}: the schedule ends at step "
                f"{warmup + stable + decay}",
                stacklevel=2,
            )
    elif total is not None:
        stable = total - warmup - decay
    else:
        raise ValueError("num_training_steps or num_stable_steps is required")

    shapes = {"linear": Polynomial(decay), "cosine": Cosine(decay, num_cycles), "1-sqrt": OneMinusSqrt(decay)}
    skipped = max(0, -stable)
    falling = shapes[decay_type].floor(ratio).ahead(skipped).then(Constant(ratio), at=max(0, decay - skipped))
    rising = Ramp(warmup, start=ratio, shape=warmup_type)
    curve = rising.then(Constant().then(falling, at=max(0, stable)))
    return ScheduleLR(optimizer, curve.until(warmup + stable + decay), last_epoch)
