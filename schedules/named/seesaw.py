"""Seesaw: the learning rate falls by the root of a cut, and the batch grows by the whole of it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..checks import real_number
from ..curves import Curve
from ..patterns import Milestones
from ..table import Lengths, checked_lengths, described, schedule

# So many steps of the schedule that is followed are looked at, whether it only falls.
_LOOKED_AT = 1000


@schedule("seesaw", "another schedule in cuts, each of them half of the lr, half of a larger batch")
def get_seesaw_schedule(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    schedule: Curve | str | Sequence[Any] = "cosine",
    cut: float = 2.0,
    max_batch_factor: float | None = None,
) -> Curve:
    """Where ``schedule`` has fallen to ``cut ** -k``, take ``lr * cut ** (-k / 2)`` and a batch ``cut ** k`` as large.

    T steps of the first batch are the data. As batches grow, the steps become fewer: the curve ends before step T, at
    its :attr:`length`. :func:`schedules.seesaw_batch_factor` says how large the batch of a step is, which is yours to
    make so: with ``cut`` = 2 by accumulating twice as many micro-batches at each cut. As a step of Adam goes about as
    far with a larger batch, the loss over the data is that of the schedule that is followed. With small cuts there are
    as many steps as the mean of its multipliers says: half of T for half a cosine, 2 / pi for a quarter of one. It
    holds as long as gradients have more noise than signal: up to the critical batch size.

    Args:
        num_warmup_steps: W, steps of warm-up of ``schedule``, which are taken as they are.
        num_training_steps: T, steps that ``schedule`` would take, warm-up included, all with the first batch.
        schedule: what is followed: a name, a pair of a name and a dict of its arguments, or a curve; it must not rise
            after step W.
        cut: a, above 1.
        max_batch_factor: the largest batch over the first, 1 or more. The learning rate takes later cuts in full.
            Default: no bound but that the last batch is one step.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range, or ``schedule`` rises after step W.

    Source: Seesaw, https://arxiv.org/abs/2510.14717.
    """
    return _seesaw(num_warmup_steps, num_training_steps, schedule, cut, max_batch_factor)[0]


def seesaw_batch_factor(
    num_warmup_steps: int | float,
    num_training_steps: int,
    *,
    schedule: Curve | str | Sequence[Any] = "cosine",
    cut: float = 2.0,
    max_batch_factor: float | None = None,
) -> Curve:
    """How many times as large as the first the batch of each step is, beside :func:`schedules.get_seesaw_schedule`.

        >>> factor = seesaw_batch_factor(100, 1000)
        >>> factor(0), factor(400), factor.length
        (1.0, 1.0, 662.0)

    Args:
        num_warmup_steps: as there, like all that follow.
        num_training_steps: as there.
        schedule: as there.
        cut: as there.
        max_batch_factor: as there.

    Raises:
        TypeError, ValueError: as there.
    """
    return _seesaw(num_warmup_steps, num_training_steps, schedule, cut, max_batch_factor)[1]


def _seesaw(
    num_warmup_steps: Any, num_training_steps: Any, schedule: Any, cut: Any, max_batch_factor: Any
) -> tuple[Curve, Curve]:
    """The curves of the learning rate and of the batch."""
    lengths = checked_lengths(num_warmup_steps, num_training_steps)
    factor = real_number("cut", cut, above=1)
    most = math.inf if max_batch_factor is None else real_number("max_batch_factor", max_batch_factor, at_least=1)
    followed = described("schedule", schedule, lengths.warmup, lengths.total)
    total = lengths.total or 0
    _check_falling(followed, lengths)
    # Steps are those taken here, data is counted in steps of the first batch.
    step = data = float(min(lengths.warmup, total))
    batch = 1.0
    both: list[float] = []
    lr_alone: list[float] = []
    while True:
        at = _first_below(followed, factor ** -(len(both) + len(lr_alone) + 1), data, total)
        larger = not lr_alone and batch * factor <= most
        following = batch * factor if larger else batch
        if at is None or total - at < following:  # not enough data for one step of it
            break
        taken = max(0, math.ceil((at - data) / batch))
        step, data = step + taken, data + taken * batch
        (both if larger else lr_alone).append(step)
        batch = following
    end = step + math.ceil(max(0.0, total - data) / batch)
    rates = Milestones(tuple(both), factor**-0.5) * Milestones(tuple(lr_alone), 1.0 / factor)
    return followed.switch(rates, at=lengths.warmup).until(end), Milestones(tuple(both), factor).until(end)


def _first_below(curve: Curve, level: float, first: float, last: int) -> float | None:
    """The first step from ``first`` to ``last`` at which a curve that only falls is not above a level."""
    bound = level * (1.0 + 1e-12)
    if first > last or curve(last) > bound:
        return None
    if curve(first) <= bound:
        return first
    steps = range(math.ceil(first), last)
    return steps.start + bisect_left(steps, True, key=lambda step: curve(step) <= bound)


def _check_falling(curve: Curve, lengths: Lengths) -> None:
    """Raise for a curve that rises after the warm-up, as far as that is seen at some of its steps."""
    first, last = lengths.warmup, lengths.total or 0
    steps = sorted({*range(first, last + 1, max(1, (last - first) // _LOOKED_AT)), last})
    try:
        values = curve.values(steps)
    except TypeError as error:
        raise ValueError(
            f"schedule must be made of shares of the learning rate, such as min_lr_rate in place of min_lr: {error}"
        ) from None
    for step, before, after in zip(steps[1:], values, values[1:], strict=False):
        if after > before * (1.0 + 1e-12):
            raise ValueError(f"schedule must not rise after its warm-up, and does before step {step}")
