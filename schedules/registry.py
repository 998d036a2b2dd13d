"""Schedules by name: the names, what each one needs, and get_scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from . import factories
from .checks import closest, whole_number
from .greedy import GreedyLR, get_greedy_schedule
from .plateau import accepted_options, get_reduce_on_plateau_schedule
from .scheduler import check_optimizer

__all__ = [
    "ScheduleInfo",
    "SchedulerType",
    "canonical_schedule_name",
    "get_schedule_info",
    "get_scheduler",
    "list_schedules",
]


class SchedulerType(str, Enum):
    """The schedule names of transformers. Each member equals its name as a string."""

    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    COSINE_WARMUP_WITH_MIN_LR = "cosine_warmup_with_min_lr"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    GREEDY = "greedy"

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _missing_(cls, value: object) -> SchedulerType | None:
        name = canonical_schedule_name(value)  # type: ignore[arg-type]
        return next((member for member in cls if member.value == name), None)


@dataclass(frozen=True)
class ScheduleInfo:
    """What is known of a schedule.

    Attributes:
        name: the canonical name.
        description: one line.
        factory: the ``get_*`` function behind the name.
        kwargs: what ``scheduler_specific_kwargs`` may hold.
        required_kwargs: what it must hold.
        needs_warmup: ``num_warmup_steps`` must be given.
        needs_total: ``num_training_steps`` must be given.
        needs_metric: its ``step`` takes a metric: ``schedule.step(eval_loss)``.
    """

    name: str
    description: str
    factory: Callable[..., LRScheduler]
    kwargs: tuple[str, ...]
    required_kwargs: tuple[str, ...]
    needs_warmup: bool
    needs_total: bool
    needs_metric: bool


def _describe(
    name: SchedulerType, factory: Callable[..., LRScheduler], description: str, options_of: type | None = None
) -> ScheduleInfo:
    parameters = inspect.signature(factory).parameters
    options = accepted_options(options_of) if options_of else dict(parameters)
    own = {key: each for key, each in options.items() if key not in ("optimizer", *_LENGTHS)}

    def needs(parameter: str) -> bool:
        return parameter in parameters and parameters[parameter].default is inspect.Parameter.empty

    return ScheduleInfo(
        name=name.value,
        description=description,
        factory=factory,
        kwargs=tuple(own),
        required_kwargs=tuple(key for key, each in own.items() if each.default is inspect.Parameter.empty),
        needs_warmup=needs("num_warmup_steps"),
        needs_total=needs("num_training_steps"),
        needs_metric=options_of is not None,
    )


_LENGTHS = ("num_warmup_steps", "num_training_steps")
_T = SchedulerType
_SCHEDULES: dict[str, ScheduleInfo] = {
    info.name: info
    for info in (
        _describe(_T.LINEAR, factories.get_linear_schedule_with_warmup, "warm-up, then a line to 0"),
        _describe(_T.COSINE, factories.get_cosine_schedule_with_warmup, "warm-up, then half a cosine to 0"),
        _describe(
            _T.COSINE_WITH_RESTARTS,
            factories.get_cosine_with_hard_restarts_schedule_with_warmup,
            "warm-up, then half cosines to 0, each starting at the peak again",
        ),
        _describe(
            _T.POLYNOMIAL,
            factories.get_polynomial_decay_schedule_with_warmup,
            "warm-up, then a power of the remaining share, down to lr_end",
        ),
        _describe(_T.CONSTANT, factories.get_constant_schedule, "the initial learning rate throughout"),
        _describe(
            _T.CONSTANT_WITH_WARMUP,
            factories.get_constant_schedule_with_warmup,
            "warm-up, then the initial learning rate",
        ),
        _describe(
            _T.INVERSE_SQRT, factories.get_inverse_sqrt_schedule, "warm-up, then one over the root of the steps, no end"
        ),
        _describe(
            _T.REDUCE_ON_PLATEAU,
            get_reduce_on_plateau_schedule,
            "multiplied by a factor when a metric stops improving",
            TorchReduceLROnPlateau,
        ),
        _describe(
            _T.COSINE_WITH_MIN_LR,
            factories.get_cosine_with_min_lr_schedule_with_warmup,
            "warm-up, then half a cosine to min_lr or min_lr_rate (one is required)",
        ),
        _describe(
            _T.COSINE_WARMUP_WITH_MIN_LR,
            factories.get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
            "the same a step earlier: the warm-up starts above 0, the last step has min_lr or min_lr_rate",
        ),
        _describe(
            _T.WARMUP_STABLE_DECAY,
            factories.get_wsd_schedule,
            "warm-up, the initial learning rate, then num_decay_steps of decay",
        ),
        _describe(
            _T.GREEDY,
            get_greedy_schedule,
            "raised while a metric improves, lowered while it does not",
            GreedyLR,
        ),
    )
}


def list_schedules() -> list[str]:
    """Return the canonical names of all schedules, sorted."""
    return sorted(_SCHEDULES)


def canonical_schedule_name(name: str) -> str:
    """Return the canonical form of a schedule's name.

    Args:
        name: the name in any case, with ``-`` or ``_``; also a SchedulerType, this one or that of transformers.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: no schedule has this name; the closest ones are listed.
    """
    plain = name.value if isinstance(name, Enum) else name
    if not isinstance(plain, str):
        raise TypeError(f"the name of a schedule must be a str, got {name!r} of type {type(name).__name__}")
    wanted = plain.lower().replace("-", "_")
    if wanted not in _SCHEDULES:
        raise ValueError(f"unknown schedule {plain!r}; {closest(wanted, _SCHEDULES)}")
    return wanted


def get_schedule_info(name: str) -> ScheduleInfo:
    """Return what is known of a schedule.

    Args:
        name: as in :func:`canonical_schedule_name`, which also says what is raised.
    """
    return _SCHEDULES[canonical_schedule_name(name)]


def get_scheduler(
    name: str | SchedulerType,
    optimizer: Optimizer,
    num_warmup_steps: int | None = None,
    num_training_steps: int | None = None,
    scheduler_specific_kwargs: Mapping[str, Any] | None = None,
) -> LRScheduler:
    """Make a schedule by its name.

    Args:
        name: the schedule's name in any case, with ``-`` or ``_``, or a SchedulerType.
        optimizer: the optimizer to drive.
        num_warmup_steps: steps of warm-up. Schedules without a warm-up take no notice of it.
        num_training_steps: steps of the whole schedule, warm-up included. Schedules without an end take no notice.
        scheduler_specific_kwargs: further arguments of the schedule's ``get_*`` function. None is ever left out.

    Returns:
        A torch scheduler. Step it after each step of the optimizer; ``reduce_lr_on_plateau`` and ``greedy`` are
        stepped with a

    Raises:
        TypeError: ``scheduler_specific_kwargs`` holds an argument that the schedule does not take.
        ValueError: the name is unknown, a required argument is missing, or an argument is out of range.
    """
    info = get_schedule_info(name)
    check_optimizer(optimizer)
    if scheduler_specific_kwargs is not None and not isinstance(scheduler_specific_kwargs, Mapping):
        raise TypeError(f"scheduler_specific_kwargs must be a dict, got {scheduler_specific_kwargs!r}")
    kwargs = dict(scheduler_specific_kwargs or {})
    for key in kwargs:
        if key in _LENGTHS:
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
        length = whole_number(key, length)
        if key in parameters:
            kwargs[key] = length
    return info.factory(optimizer, **kwargs)
