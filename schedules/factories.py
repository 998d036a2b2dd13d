"""One function per schedule, with the signatures of transformers.

Each returns a torch scheduler over a curve. Common to all with a warm-up: before step ``num_warmup_steps`` the lr is
``lr * step / num_warmup_steps``, so the first step has lr 0. Common to all with a total: from step
``num_training_steps`` on, the lr stays at its end value. If the warm-up is longer than the total, the lr stops rising
at the total.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from .curves import Curve
from .named import transformers as named
from .scheduler import ScheduleLR

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


def get_constant_schedule(optimizer: Optimizer, last_epoch: int = -1) -> ScheduleLR:
    """Keep the learning rate: ``lr(t) = lr``.

    Args:
        optimizer: the optimizer to drive.
        last_epoch: the last step done; -1 for a new run.
    """
    return ScheduleLR(optimizer, named.constant_curve(), last_epoch)


def get_constant_schedule_with_warmup(optimizer: Optimizer, num_warmup_steps: int, last_epoch: int = -1) -> ScheduleLR:
    """Warm up, then keep the learning rate: ``lr(t) = lr * min(1, t / num_warmup_steps)``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up, 0 or more.
        last_epoch: the last step done; -1 for a new run.
    """
    return ScheduleLR(optimizer, named.constant_with_warmup_curve(num_warmup_steps), last_epoch)


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
    return ScheduleLR(optimizer, named.linear_curve(num_warmup_steps, num_training_steps), last_epoch)


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
    return ScheduleLR(optimizer, named.cosine_curve(num_warmup_steps, num_training_steps, num_cycles), last_epoch)


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
    curve = named.cosine_with_restarts_curve(num_warmup_steps, num_training_steps, num_cycles)
    return ScheduleLR(optimizer, curve, last_epoch)


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
    curve = named.polynomial_curve(num_warmup_steps, num_training_steps, lr_end, power)
    return ScheduleLR(optimizer, curve, last_epoch)


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
    return ScheduleLR(optimizer, named.inverse_sqrt_curve(num_warmup_steps, timescale), last_epoch)


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
    curve = named.cosine_with_min_lr_curve(num_warmup_steps, num_training_steps, num_cycles, min_lr, min_lr_rate)
    return ScheduleLR(optimizer, curve, last_epoch)


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
    curve = named.cosine_warmup_with_min_lr_curve(
        num_warmup_steps, num_training_steps, num_cycles, min_lr, min_lr_rate, warmup_lr_rate
    )
    return ScheduleLR(optimizer, curve, last_epoch)


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
    curve = named.wsd_curve(
        num_warmup_steps,
        num_decay_steps,
        num_training_steps,
        num_stable_steps,
        warmup_type,
        decay_type,
        min_lr_ratio,
        num_cycles,
    )
    return ScheduleLR(optimizer, curve, last_epoch)


def for_optimizer(curve: Callable[..., Curve]) -> Callable[..., ScheduleLR]:
    """Make the ``get_*`` function of a curve: the same arguments with the optimizer before and ``last_epoch`` after."""

    @functools.wraps(curve)
    def get_schedule(optimizer: Optimizer, *args: Any, last_epoch: int = -1, **kwargs: Any) -> ScheduleLR:
        return ScheduleLR(optimizer, curve(*args, **kwargs), last_epoch)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    own = list(inspect.signature(curve).parameters.values())
    first = inspect.Parameter("optimizer", kind, annotation=Optimizer)
    last = inspect.Parameter("last_epoch", inspect.Parameter.KEYWORD_ONLY, default=-1, annotation=int)
    signature = inspect.Signature([first, *own, last], return_annotation=ScheduleLR)
    get_schedule.__name__ = get_schedule.__qualname__ = f"get_{curve.__name__.removesuffix('_curve')}_schedule"
    get_schedule.__signature__ = signature  # type: ignore[attr-defined]
    return get_schedule
