"""Schedules by name: get_scheduler and get_curve, the names themselves, and options checked before there is a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, EnumMeta
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from . import greedy, metric
from .checks import is_list, real_number
from .curves import Curve
from .groups import check_optimizer
from .named import deepspeed, jax, papers, pytorch, seesaw, timm, transformers
from .table import LENGTHS, SCHEDULES, ScheduleInfo, arguments_of, canonical_schedule_name, curve_of, get_schedule_info

# Importing these modules has filled the table.
_SOURCES = (transformers, metric, greedy, pytorch, deepspeed, jax, papers, seesaw, timm)


class _FromTable(EnumMeta):
    if TYPE_CHECKING:

        def __getattr__(cls, name: str) -> SchedulerType: ...


class SchedulerType(str, Enum, metaclass=_FromTable):
    """The names of all schedules. Each member equals its name as a string."""

    _ignore_ = "_name"
    for _name in SCHEDULES:
        # transformers' name of the one member that is not called as its value.
        vars()["REDUCE_ON_PLATEAU" if _name == "reduce_lr_on_plateau" else _name.upper()] = _name

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _missing_(cls, value: object) -> SchedulerType | None:
        name = canonical_schedule_name(value)  # type: ignore[arg-type]
        return next((member for member in cls if member.value == name), None)


def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    num_warmup_steps: int | float | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> LRScheduler:
    """Make a schedule by its name.

    Args:
        name: the schedule's name in any case, with ``-`` or ``_``, or a SchedulerType.
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up, or a share of the total, above 0 and below 1, which is rounded up to whole
            steps. Schedules without a warm-up take no notice of it.
        num_training_steps: steps of the whole schedule, warm-up included. Schedules without an end take no notice.
        scheduler_specific_kwargs: further arguments of the schedule's ``get_*`` function. None is ever left out.

    Returns:
        A torch scheduler. Step it after each step of the optimizer; ``reduce_lr_on_plateau`` and ``greedy`` are
        stepped with a metric.

    Raises:
        TypeError: ``scheduler_specific_kwargs`` holds an argument that the schedule does not take.
        ValueError: the name is unknown, a required argument is missing, or an argument is out of range.
    """
    info = get_schedule_info(name)
    check_optimizer(optimizer)
    arguments = arguments_of(info, num_warmup_steps, num_training_steps, scheduler_specific_kwargs)
    return info.factory(optimizer, **arguments)


def get_curve(
    name: str | SchedulerType,
    num_warmup_steps: int | float | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> Curve:
    """Make the curve of a schedule by its name: the multiplier as a function of the step, without an optimizer.

    Args:
        name: as in :func:`get_scheduler`.
        num_warmup_steps: as there.
        num_training_steps: as there.
        scheduler_specific_kwargs: as there; ``last_epoch`` has no meaning here.

    Raises:
        TypeError: as in :func:`get_scheduler`.
        ValueError: as there, or the schedule follows a metric and is no function of the step.
    """
    return curve_of(name, num_warmup_steps, num_training_steps, scheduler_specific_kwargs)


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
            lambda warmup, total: curve_of(info.name, warmup, total, options), num_warmup_steps, num_training_steps
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
