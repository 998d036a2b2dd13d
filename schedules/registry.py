"""Schedules by name: what there is, and get_scheduler and get_curve."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .catalogue import LENGTHS, SCHEDULES, ScheduleInfo, SchedulerType, canonical_schedule_name
from .checks import closest, steps_or_share
from .curves import Curve
from .scheduler import check_optimizer

__all__ = ["get_curve", "get_schedule_info", "get_scheduler", "list_schedules"]


def list_schedules() -> list[str]:
    """Return the canonical names of all schedules, sorted."""
    return sorted(SCHEDULES)


def get_schedule_info(name: str) -> ScheduleInfo:
    """Return what is known of a schedule.

    Args:
        name: as in :func:`canonical_schedule_name`, which also says what is raised.
    """
    return SCHEDULES[canonical_schedule_name(name)]


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
    arguments = _arguments(info, num_warmup_steps, num_training_steps, scheduler_specific_kwargs)
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
    info = get_schedule_info(name)
    if info.curve is None:
        raise ValueError(f"{info.name} follows a metric, so it is no curve over the steps; use get_scheduler")
    arguments = _arguments(info, num_warmup_steps, num_training_steps, scheduler_specific_kwargs)
    if "last_epoch" in arguments:
        raise TypeError("last_epoch is the position of an optimizer's schedule; a curve has none")
    return info.curve(**arguments)


def _arguments(
    info: ScheduleInfo,
    num_warmup_steps: int | float | None,
    num_training_steps: int | None,
    scheduler_specific_kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Check what was given for a schedule and return the arguments of its functions."""
    if scheduler_specific_kwargs is not None and not isinstance(scheduler_specific_kwargs, Mapping):
        raise TypeError(f"scheduler_specific_kwargs must be a dict, got {scheduler_specific_kwargs!r}")
    kwargs = dict(scheduler_specific_kwargs or {})
    for key in kwargs:
        if key in LENGTHS:
            raise TypeError(f"{key} is an argument of get_scheduler itself, not one of scheduler_specific_kwargs")
        if key not in info.kwargs:
            takes = ", ".join(info.kwargs)
            raise TypeError(f"{info.name} takes no argument {key!r}; {closest(key, info.kwargs)}; it takes {takes}")
    for key in info.required_kwargs:
        if key not in kwargs:
            raise ValueError(f"{info.name} requires {key!r} in scheduler_specific_kwargs")

    parameters = inspect.signature(info.factory).parameters
    lengths = {"num_warmup_steps": num_warmup_steps, "num_training_steps": num_training_steps}
    needed = {"num_warmup_steps": info.needs_warmup, "num_training_steps": info.needs_total}
    for key, length in lengths.items():
        if length is None:
            if needed[key]:
                raise ValueError(f"{info.name} requires {key}")
            continue
        length = steps_or_share(key, length, num_training_steps)
        if key in parameters:
            kwargs[key] = length
    return kwargs
