"""One function per schedule, with the signatures of transformers.

Each returns a torch scheduler over a curve. Common to all with a warm-up: before step ``num_warmup_steps`` the lr is
``lr * step / num_warmup_steps``, so the first step has lr 0. Common to all with a total: from step
``num_training_steps`` on, the lr stays at its end value. If the warm-up is longer than the total, the lr stops rising
at the total. A number of warm-up or decay steps above 0 and below 1 is a share of the total, rounded up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from .curves import Curve
from .named import pretraining, pytorch, pytorch_optimizer, sequence, timm
from .named import transformers as named
from .scheduler import ScheduleLR

__all__ = [
    "get_chebyshev_schedule",
    "get_constant_factor_schedule",
    "get_constant_schedule",
    "get_constant_schedule_with_warmup",
    "get_cosine_annealing_schedule",
    "get_cosine_annealing_with_warm_restarts_schedule",
    "get_cosine_annealing_with_warmup_schedule",
    "get_cosine_schedule_with_warmup",
    "get_cosine_with_cycles_schedule",
    "get_cosine_with_hard_restarts_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup",
    "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
    "get_cyclic_schedule",
    "get_exponential_schedule",
    "get_infinite_schedule",
    "get_inverse_sqrt_schedule",
    "get_linear_factor_schedule",
    "get_linear_schedule_with_warmup",
    "get_multiplicative_schedule",
    "get_multistep_schedule",
    "get_noam_schedule",
    "get_one_cycle_schedule",
    "get_poly_schedule",
    "get_polynomial_decay_schedule_with_warmup",
    "get_power_schedule",
    "get_proportion_schedule",
    "get_rex_schedule",
    "get_rsqrt_schedule",
    "get_sequential_schedule",
    "get_step_schedule",
    "get_tanh_schedule",
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
    optimizer: Optimizer, num_warmup_steps: int | float, num_training_steps: int, last_epoch: int = -1
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
    num_warmup_steps: int | float,
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
    num_warmup_steps: int | float,
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
    num_warmup_steps: int | float,
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
    num_warmup_steps: int | float,
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
    num_warmup_steps: int | float,
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
    num_warmup_steps: int | float,
    num_decay_steps: int | float,
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
    ``cosine`` (1 + cos(2 pi c x)) / 2, ``1-sqrt`` 1 - sqrt(x), ``1-square`` 1 - x ** 2, ``exponential``
    (q ** x - q) / (1 - q) with q = r, so that the lr is ``lr * r ** x``, or q = 0.1 if r is 0. After the decay the lr
    is ``r * lr``.

    Args:
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up, 0 or more, or a share of the total. It starts at ``r * lr``.
        num_decay_steps: steps of decay, 0 or more, or a share of the total.
        num_training_steps: steps of the whole schedule. It gives the stable steps where these are not given. A total
            too short for warm-up and decay cuts the beginning of the decay off.
        num_stable_steps: steps at the full lr, 0 or more. It wins over ``num_training_steps``.
        warmup_type: ``linear``, ``cosine`` or ``1-sqrt``.
        decay_type: ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``.
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


_OWN_ARGS = """Args:
    optimizer: the optimizer to drive.
    last_epoch: the last step done; -1 for a new run.
"""


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
    get_schedule.__doc__ = inspect.cleandoc(curve.__doc__ or "").replace("Args:\n", _OWN_ARGS, 1)
    return get_schedule


get_chebyshev_schedule = for_optimizer(pytorch_optimizer.chebyshev_curve)
get_constant_factor_schedule = for_optimizer(pytorch.constant_factor_curve)
get_cosine_annealing_schedule = for_optimizer(pytorch.cosine_annealing_curve)
get_cosine_annealing_with_warm_restarts_schedule = for_optimizer(pytorch.cosine_annealing_with_warm_restarts_curve)
get_cosine_annealing_with_warmup_schedule = for_optimizer(pytorch_optimizer.cosine_annealing_with_warmup_curve)
get_cyclic_schedule = for_optimizer(pytorch.cyclic_curve)
get_exponential_schedule = for_optimizer(pytorch.exponential_curve)
get_infinite_schedule = for_optimizer(pretraining.infinite_curve)
get_linear_factor_schedule = for_optimizer(pytorch.linear_factor_curve)
get_multiplicative_schedule = for_optimizer(pytorch.multiplicative_curve)
get_noam_schedule = for_optimizer(pretraining.noam_curve)
get_one_cycle_schedule = for_optimizer(pytorch.one_cycle_curve)
get_power_schedule = for_optimizer(pretraining.power_curve)
get_proportion_schedule = for_optimizer(pytorch_optimizer.proportion_curve)
get_rex_schedule = for_optimizer(pytorch_optimizer.rex_curve)
get_sequential_schedule = for_optimizer(sequence.sequential_curve)

get_cosine_with_cycles_schedule = for_optimizer(timm.cosine_with_cycles_curve)
get_multistep_schedule = for_optimizer(timm.multistep_curve)
get_poly_schedule = for_optimizer(timm.poly_curve)
get_rsqrt_schedule = for_optimizer(timm.rsqrt_curve)
get_step_schedule = for_optimizer(timm.step_curve)
get_tanh_schedule = for_optimizer(timm.tanh_curve)
