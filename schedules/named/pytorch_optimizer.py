"""The curves of pytorch_optimizer that neither transformers nor torch has.

W is ``num_warmup_steps`` and T is ``num_training_steps``. From step T on the multiplier stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checks import real_number
from ..curves import Absolute, Constant, Curve, EndLR, Max
from ..shapes import Chebyshev, CyclePeaks, Rational, WarmedCycles
from .parts import spanned, warmed
from .sequence import described
from .transformers import lengths

__all__ = ["chebyshev_curve", "cosine_annealing_with_warmup_curve", "proportion_curve", "rex_curve"]


def rex_curve(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    max_lr: float | None = None,
    min_lr: float = 0.0,
) -> Curve:
    """``m + (lr - m) (1 - x) / (1 - x / 2)`` after the warm-up, x = (t - W)/(T - W), m = ``min_lr``.

    Args:
        num_warmup_steps: W, steps of warm-up from 0, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        max_lr: the learning rate at the peak, the same in every group. Default: each group's own.
        min_lr: m, the learning rate at the end, the same in every group.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: REX, https://arxiv.org/abs/2107.04197.
    """
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    return warmed(spanned(Rational(rest), max_lr, min_lr), warmup).until(total)


def chebyshev_curve(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    small: float = 0.05,
    big: float = 1.0,
) -> Curve:
    """``lr / ((M + m) / 2 - (M - m) / 2 * cos(pi (s(t - W) + 1/2) / N))``: Chebyshev steps in fractal order.

    N is the smallest power of two that is at least T - W, s the fractal order of 0 .. N - 1. The multiplier lies
    between 1 / M and 1 / m: by default the largest learning rate is nearly 20 times the optimizer's, in the first step.

    Args:
        num_warmup_steps: W, steps of warm-up from 0 to the first of them, or a share of T.
        num_training_steps: T, steps of the whole schedule, warm-up included.
        small: m, lower end of the spectrum, above 0.
        big: M, upper end of the spectrum, at least m.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/2103.01338.
    """
    warmup, total, rest = lengths(num_warmup_steps, num_training_steps)
    return warmed(Chebyshev(rest, small, big), warmup).until(total)


def cosine_annealing_with_warmup_curve(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    first_cycle_steps: int | None = None,
    cycle_mult: float = 1.0,
    max_lr: float | None = None,
    min_lr: float = 1e-6,
    gamma: float = 0.9,
) -> Curve:
    """Cycles of a warm-up and a half cosine, each with a lower peak than the one before.

    In cycle i: ``m + (g ** i lr - m) p / W`` for the first W steps, then ``m + (g ** i lr - m) (1 + cos(pi x)) / 2``,
    p the step in the cycle, x the share of the way down that is done, m = ``min_lr``, g = ``gamma``. A run that ends
    with a cycle stays at m.

    Args:
        num_warmup_steps: W, steps of warm-up in each cycle, or a share of T.
        num_training_steps: T; the learning rate stays from there on.
        first_cycle_steps: steps of the first cycle, more than W. Default: T.
        cycle_mult: a way down's length over that of the one before, above 0; rounded down to whole steps, 1 at least.
        max_lr: the learning rate at the first peak, the same in every group. Default: each group's own.
        min_lr: m, the learning rate at the ends of a cycle, the same in every group.
        gamma: g, a peak over the one before, above 0 and at most 1. A peak below ``min_lr`` is ``min_lr``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: SGDR, https://arxiv.org/abs/1608.03983, with warm-ups: pytorch_optimizer's CosineAnnealingWarmupRestarts.
    """
    warmup, total, _ = lengths(num_warmup_steps, num_training_steps)
    first = max(total, warmup + 1) if first_cycle_steps is None else first_cycle_steps
    cycles = WarmedCycles(warmup, first, cycle_mult)
    low = real_number("min_lr", min_lr, at_least=0)
    top: Curve = CyclePeaks(cycles, gamma)
    if max_lr is not None:
        high = real_number("max_lr", max_lr, above=0)
        if low > high:
            raise ValueError(f"min_lr={low:g} is above max_lr={high:g}")
        top = top * Absolute(high)
    ends_with_a_cycle = total > 0 and cycles.cycle(total)[1] == 0
    height = cycles.then(Constant(0.0), at=total) if ends_with_a_cycle else cycles
    bottom = Absolute(low) if max_lr is not None else EndLR(low)
    return height.between(bottom, Max(top, bottom)).until(total)


def proportion_curve(
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    schedule: Curve | str | Sequence[Any],
    max_value: float,
    min_value: float,
    max_lr: float = 1.0,
    min_lr: float = 0.0,
) -> Curve:
    """A value that rises and falls with a schedule: ``min_value + (max_value - min_value) (lr - l) / (h - l)``.

    l = ``min_lr``, h = ``max_lr``, and ``lr = h * schedule(t)``. The result is the value itself, not a multiplier:
    with :func:`schedules.schedule_hyperparameter` the rho of GSAM, for example, follows the learning rate from
    ``max_value`` to ``min_value``. By name, as a schedule, it is the learning rate of every group.

    Args:
        num_warmup_steps: warm-up of ``schedule``, where that does not name its own.
        num_training_steps: total of ``schedule``, where that does not name its own.
        schedule: a name, a pair of a name and a dict of its arguments, or a curve.
        max_value: the value at ``max_lr``.
        min_value: the value at ``min_lr``.
        max_lr: h, the learning rate that ``schedule`` multiplies. The default takes the multipliers themselves.
        min_lr: l, the learning rate at ``min_value``, below ``max_lr``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: Surrogate Gap Minimization (GSAM), https://arxiv.org/abs/2203.08065.
    """
    high = real_number("max_lr", max_lr, above=0)
    low = real_number("min_lr", min_lr, at_least=0, below=high)
    bottom, top = real_number("min_value", min_value), real_number("max_value", max_value)
    curve = described("schedule", schedule, num_warmup_steps, num_training_steps).bind(high)
    share = curve.between(-low / (high - low), 1.0)
    return share.between(bottom, top) * Absolute(1.0)
