"""The options of a schedule, checked before there is a run: without an optimizer and its numbers of steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .catalogue import LENGTHS, ScheduleInfo
from .checks import is_list, real_number
from .curves import Curve
from .registry import get_curve, get_schedule_info

__all__ = ["check_options", "with_some_steps"]

# What stands for a number of training steps that is not known yet: first more than any option is likely to want of it,
# then so few that a share of it is no more than an option is likely to want.
_TOTALS = (10**9, 1000, 10)
# What stands for a learning rate that is not known yet: above every floor.
_HIGH = 1e300
# Options of schedules that follow a metric, which may be one number for each param group.
_PER_GROUP = ("min_lr", "max_lr", "warmup_lr")


def check_options(
    name: str,
    options: Mapping[str, Any] | None = None,
    lr: float | Iterable[float] | None = None,
    *,
    num_warmup_steps: int | float | None = None,
    num_training_steps: int | None = None,
) -> None:
    """Raise for options that a schedule would refuse, long before the run whose optimizer it needs.

        >>> check_options("cosine_with_min_lr", {"min_lr": 1e-5}, lr=1e-4)

    The schedule is made with what is known. Options that some numbers of steps would go with are not refused while
    these are not known; nor is a floor while the learning rate is not. All else that :func:`schedules.get_scheduler`
    raises is raised here.

    Args:
        name: the schedule's name, as in :func:`schedules.get_scheduler`.
        options: what would be its ``scheduler_specific_kwargs``.
        lr: the initial learning rate of the param groups, or several if they differ. None: not known yet.
        num_warmup_steps: as there. None: not known yet.
        num_training_steps: as there. None: not known yet.

    Raises:
        TypeError: an option is unknown or has the wrong type.
        ValueError: the name is unknown, an option is missing, out of range or none of the words that there are, or a
            floor is above ``lr``.
    """
    info = get_schedule_info(name)
    lrs = [] if lr is None else [*lr] if is_list(lr) else [lr]
    rates = [real_number("lr", each, at_least=0) for each in lrs]
    options = dict(options or {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schedule itself will say it, when it is made
        if info.curve is None:
            _check_following(info, options, rates)
            return
        options.pop("last_epoch", None)
        curve = with_some_steps(
            lambda warmup, total: get_curve(info.name, warmup, total, options), num_warmup_steps, num_training_steps
        )
        for rate in rates or [_HIGH]:
            curve.bind(rate).values(2)


def with_some_steps(
    make: Callable[[int | float, int], Curve],
    num_warmup_steps: int | float | None = None,
    num_training_steps: int | None = None,
) -> Curve:
    """Return the curve that ``make`` makes of some numbers of steps, those given where they are.

    Args:
        make: makes it of ``num_warmup_steps`` and ``num_training_steps``.
        num_warmup_steps: None: it is tried without a warm-up, and with one.
        num_training_steps: None: it is tried with a great many, and with few.

    Raises:
        TypeError, ValueError: what ``make`` raises, if it raises for all of these.
    """
    totals = _TOTALS if num_training_steps is None else (num_training_steps,)
    warmups = (0, 1) if num_warmup_steps is None else (num_warmup_steps,)
    made: list[Curve | TypeError | ValueError] = []
    for total in totals:
        for warmup in warmups:
            made.append(_made(make, warmup, total))
            if isinstance(made[-1], Curve):
                return made[-1]
    errors = [error for error in made if isinstance(error, Exception)]
    # What is wrong with a number that only stands for another is of no interest if there is something else.
    raise next((error for error in errors if LENGTHS[0] not in str(error)), errors[0])


def _made(make: Callable[[Any, Any], Curve], *steps: Any) -> Curve | TypeError | ValueError:
    try:
        return make(*steps)
    except (TypeError, ValueError) as error:
        return error


def _check_following(info: ScheduleInfo, options: dict[str, Any], rates: list[float]) -> None:
    """Make a schedule that follows a metric, over an optimizer of nothing."""
    lists = [len(options[name]) for name in _PER_GROUP if is_list(options.get(name))]
    rates = rates if len(rates) > 1 else (rates or [1.0]) * (lists[0] if lists else 1)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(()))], "lr": rate} for rate in rates]
    info.factory(torch.optim.SGD(groups, lr=1.0), **options)
