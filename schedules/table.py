"""The table of schedules, filled by decorators: a function that makes a curve becomes the schedule of a name.

    @schedule("rex", "warm-up, then a ratio of lines to min_lr", rise=to_first_value)
    def get_rex_schedule(lengths: Lengths, *, max_lr: float | None = None, min_lr: float = 0.0) -> Curve: ...

makes the entry ``rex`` of the table (and so the member ``REX`` of SchedulerType), whose curve takes
``num_warmup_steps`` (W), ``num_training_steps`` (T) and the options, and the factory ``get_rex_schedule``, which takes
the optimizer before and ``last_epoch`` after them. Steps are those of the optimizer; T includes the warm-up.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checks import closest, steps_or_share, whole_number
from .curves import Curve
from .scheduler import ScheduleLR
from .shapes import Ramp

LENGTHS = ("num_warmup_steps", "num_training_steps")
_REQUIRED: Any = inspect.Parameter.empty
_PLAIN = inspect.Parameter.POSITIONAL_OR_KEYWORD
_Schedule = TypeVar("_Schedule", bound=LRScheduler)


@dataclass(frozen=True)
class ScheduleInfo:
    """What is known of a schedule.

    Attributes:
        name: the canonical name.
        description: one line.
        factory: the ``get_*`` function behind the name: of the optimizer and the schedule's arguments.
        curve: the function that makes its curve of the same arguments; None for a schedule that follows a metric.
        kwargs: what ``scheduler_specific_kwargs`` may hold.
        required_kwargs: what it must hold.
        needs_warmup: ``num_warmup_steps`` must be given.
        needs_total: ``num_training_steps`` must be given.
        needs_metric: its ``step`` takes a metric: ``schedule.step(eval_loss)``.
    """

    name: str
    description: str
    factory: Callable[..., LRScheduler]
    curve: Callable[..., Curve] | None
    kwargs: tuple[str, ...]
    required_kwargs: tuple[str, ...]
    needs_warmup: bool
    needs_total: bool
    needs_metric: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return get_schedule_info, (self.name,)


SCHEDULES: dict[str, ScheduleInfo] = {}
# Other names for the same: the shorter ones in use, and those of timm, torch and pytorch_optimizer.
ALIASES: dict[str, str] = {}


class Lengths(NamedTuple):
    """The checked lengths of a schedule in steps; ``total`` is None where it has no end."""

    warmup: int
    total: int | None

    @property
    def rest(self) -> int:
        """The steps between the end of the warm-up and the total; 0 without a total."""
        return max(0, (self.total or 0) - self.warmup)

    def steps(self, name: str, value: Any) -> int:
        """Return another number of steps, which may be a share of the total, see :func:`steps_or_share`."""
        return steps_or_share(name, value, self.total)


def checked_lengths(num_warmup_steps: int | float, num_training_steps: int | None) -> Lengths:
    """Check both lengths; a warm-up above 0 and below 1 is a share of the total, rounded up."""
    warmup = steps_or_share(LENGTHS[0], num_warmup_steps, num_training_steps)
    return Lengths(warmup, None if num_training_steps is None else whole_number(LENGTHS[1], num_training_steps))


def from_zero(curve: Curve, warmup: int) -> Curve:
    """Put a line from 0 to 1 before a curve: ``t / W``, then ``curve(t - W)``."""
    return Ramp(warmup).then(curve)


def to_first_value(curve: Curve, warmup: int) -> Curve:
    """Put a line from 0 to its first value before a curve: ``curve(0) * t / W``, then ``curve(t - W)``."""
    return (Ramp(warmup) * curve.until(0)).then(curve, at=warmup) if warmup else curve


def schedule(
    name: str,
    description: str,
    *,
    aliases: Iterable[str] = (),
    warmup: float = _REQUIRED,
    total: int | None = _REQUIRED,
    rise: Callable[[Curve, int], Curve] | None = None,
    last_epoch_after: str | None = None,
) -> Callable[[Callable[..., Curve]], Callable[..., ScheduleLR]]:
    """Make the decorated function, which makes a curve, the schedule of a name.

    A function whose first parameter is ``lengths`` gets the :class:`Lengths` there; its curve has num_warmup_steps and
    num_training_steps in its place, and stays where it is from T on. Any other is taken as it is written.

    Args:
        name: the canonical name.
        description: what the learning rate does, in one line.
        aliases: other names for the same.
        warmup: what ``num_warmup_steps`` is by default; required if not given.
        total: what ``num_training_steps`` is by default; required if not given.
        rise: puts the warm-up before a curve of ``lengths``. None: it has its own, or none.
        last_epoch_after: the parameter that ``last_epoch`` follows in the factory. By default it is the last one,
            keyword-only after options that are.
    """

    def decorate(made: Callable[..., Curve]) -> Callable[..., ScheduleLR]:
        curve = _with_lengths(made, warmup, total, rise) if "lengths" in inspect.signature(made).parameters else made
        parameters = [*inspect.signature(curve).parameters.values()]
        names = [each.name for each in parameters]
        at = len(names) if last_epoch_after is None else names.index(last_epoch_after) + 1
        kind = parameters[at - 1].kind if parameters else _PLAIN
        parameters.insert(at, inspect.Parameter("last_epoch", kind, default=-1, annotation="int"))
        parameters.insert(0, inspect.Parameter("optimizer", _PLAIN, annotation="Optimizer"))
        signature = inspect.Signature(parameters, return_annotation="ScheduleLR")

        @functools.wraps(made)
        def factory(*args: Any, **kwargs: Any) -> ScheduleLR:
            given = _bound(signature, made.__name__, args, kwargs)
            optimizer, last_epoch = given.pop("optimizer"), given.pop("last_epoch", -1)
            return ScheduleLR(optimizer, curve(**given), last_epoch)

        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.__doc__ = _documented(made.__doc__ or "")
        _register(name, description, factory, curve, signature.parameters)
        ALIASES.update(dict.fromkeys(aliases, name))
        return factory

    return decorate


def metric_schedule(
    name: str, description: str, options_of: type[Any]
) -> Callable[[Callable[..., _Schedule]], Callable[..., _Schedule]]:
    """Make the decorated function, which makes a schedule that follows a metric, the schedule of a name.

    Args:
        name: the canonical name.
        description: what the learning rate does, in one line.
        options_of: the class that has the options as its parameters; any other is refused.
    """
    options = dict(inspect.signature(options_of).parameters)
    del options["optimizer"]

    def decorate(made: Callable[..., _Schedule]) -> Callable[..., _Schedule]:
        @functools.wraps(made)
        def factory(optimizer: Optimizer, **kwargs: Any) -> _Schedule:
            for key in kwargs:
                _check_known(name, "option", key, options)
            return made(optimizer, **kwargs)

        factory.__doc__ = inspect.cleandoc(made.__doc__ or "") + _OF_METRIC.format(_path(options_of))
        _register(name, description, factory, None, options)
        return factory

    return decorate


_OF_METRIC = """

Step it with the metric: ``schedule.step(eval_loss)``.

Args:
    optimizer: the optimizer to drive.
    **kwargs: options of :class:`{}`.

Raises:
    TypeError: an option is unknown.
    ValueError: an option is out of range.
"""


def _path(cls: type[Any]) -> str:
    """What a text calls a class: its name, with the module if it is not one of this package."""
    ours = cls.__module__.startswith(f"{__package__}.")
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__name__}"


def _check_known(name: str, what: str, key: str, known: Collection[str]) -> None:
    if key not in known:
        raise TypeError(f"{name} takes no {what} {key!r}; {closest(key, known)}; it takes {', '.join(known)}")


def _register(
    name: str,
    description: str,
    factory: Callable[..., LRScheduler],
    curve: Callable[..., Curve] | None,
    parameters: Mapping[str, inspect.Parameter],
) -> None:
    own = {key: each for key, each in parameters.items() if key not in ("optimizer", *LENGTHS)}
    required = [key for key, each in parameters.items() if each.default is _REQUIRED]
    warmup, total = (key in required for key in LENGTHS)
    own_required = tuple(key for key in own if key in required)
    SCHEDULES[name] = ScheduleInfo(
        name, description, factory, curve, tuple(own), own_required, warmup, total, needs_metric=curve is None
    )


def _with_lengths(
    made: Callable[..., Curve], warmup: float, total: int | None, rise: Callable[[Curve, int], Curve] | None
) -> Callable[..., Curve]:
    """A curve of num_warmup_steps, num_training_steps and options, of one that takes them as Lengths."""
    _, *options = inspect.signature(made).parameters.values()
    total_type = "int" if total is _REQUIRED else "int | None"
    own = [
        inspect.Parameter(LENGTHS[0], _PLAIN, default=warmup, annotation="int | float"),
        inspect.Parameter(LENGTHS[1], _PLAIN, default=total, annotation=total_type),
    ]
    signature = inspect.Signature([*own, *options], return_annotation="Curve")

    @functools.wraps(made)
    def curve(*args: Any, **kwargs: Any) -> Curve:
        given = _bound(signature, made.__name__, args, kwargs)
        lengths = checked_lengths(given.pop(LENGTHS[0], warmup), given.pop(LENGTHS[1], total))
        if lengths.total is None and total is _REQUIRED:
            raise TypeError(f"{LENGTHS[1]} must be an int, got None of type NoneType")
        whole = made(lengths, **given)
        if rise is not None:
            whole = rise(whole, lengths.warmup)
        return whole if lengths.total is None else whole.until(lengths.total)

    curve.__signature__ = signature  # type: ignore[attr-defined]
    return curve


def _bound(signature: inspect.Signature, name: str, args: Any, kwargs: Any) -> dict[str, Any]:
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def _documented(text: str) -> str:
    """The docstring of a curve with the factory's own arguments."""
    text = inspect.cleandoc(text)
    if "Args:\n" not in text:
        text += "\n\nArgs:\n"
    own = "    optimizer: the optimizer to drive.\n    last_epoch: the last step done; -1 for a new run.\n"
    return text.replace("Args:\n", f"Args:\n{own}", 1)


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
    wanted = ALIASES.get(wanted, wanted)
    if wanted not in SCHEDULES:
        raise ValueError(f"unknown schedule {plain!r}; {closest(wanted, [*SCHEDULES, *ALIASES])}")
    return wanted


def list_schedules() -> list[str]:
    """Return the canonical names of all schedules, sorted."""
    return sorted(SCHEDULES)


def get_schedule_info(name: str) -> ScheduleInfo:
    """Return what is known of a schedule.

    Args:
        name: as in :func:`canonical_schedule_name`, which also says what is raised.
    """
    return SCHEDULES[canonical_schedule_name(name)]


def arguments_of(info: ScheduleInfo, warmup: Any, total: Any, scheduler_specific_kwargs: Any) -> dict[str, Any]:
    """Check what was given for a schedule and return the arguments of its factory; raises as ``get_scheduler``."""
    if scheduler_specific_kwargs is not None and not isinstance(scheduler_specific_kwargs, Mapping):
        raise TypeError(f"scheduler_specific_kwargs must be a dict, got {scheduler_specific_kwargs!r}")
    kwargs = dict(scheduler_specific_kwargs or {})
    for key in kwargs:
        if key in LENGTHS:
            raise TypeError(f"{key} is an argument of get_scheduler itself, not one of scheduler_specific_kwargs")
        _check_known(info.name, "argument", key, info.kwargs)
    for key in info.required_kwargs:
        if key not in kwargs:
            raise ValueError(f"{info.name} requires {key!r} in scheduler_specific_kwargs")
    parameters = inspect.signature(info.factory).parameters
    for key, length, needed in zip(LENGTHS, (warmup, total), (info.needs_warmup, info.needs_total), strict=True):
        if length is None:
            if needed:
                raise ValueError(f"{info.name} requires {key}")
            continue
        length = steps_or_share(key, length, total)
        if key in parameters:
            kwargs[key] = length
    return kwargs


def curve_of(name: str, *given: Any) -> Curve:
    """Make the curve of a schedule by its name, with the arguments of :func:`schedules.get_curve`."""
    info = get_schedule_info(name)
    if info.curve is None:
        raise ValueError(f"{info.name} follows a metric, so it is no curve over the steps; use get_scheduler")
    arguments = arguments_of(info, *given)
    if "last_epoch" in arguments:
        raise TypeError("last_epoch is the position of an optimizer's schedule; a curve has none")
    return info.curve(**arguments)


def described(
    where: str, schedule: Curve | str | Sequence[Any], num_warmup_steps: int | float, num_training_steps: int | None
) -> Curve:
    """Return the curve that is written as a name, as a name and a dict of its arguments, or as a curve.

    Args:
        where: the name of the argument that holds it, for errors.
        schedule: what is written there.
        num_warmup_steps: for a name without one in its dict.
        num_training_steps: for a name without one in its dict.

    Raises:
        TypeError: it is none of the three, or the dict holds an argument that the schedule does not take.
        ValueError: the name is unknown, an argument is missing or out of range, or a curve, which is complete as it
            is, should be warmed up.
    """
    if isinstance(schedule, Curve):
        if num_warmup_steps:
            raise ValueError(f"num_warmup_steps={num_warmup_steps!r} is of no use to a curve: put it into {where}")
        return schedule
    pair = [schedule, {}] if isinstance(schedule, str) else schedule
    if not isinstance(pair, Sequence) or not 1 <= len(pair) <= 2 or not isinstance(pair[0], str):
        raise TypeError(f"{where} must be a name, [name, {{arguments}}] or a curve, got {schedule!r}")
    options = pair[1] if len(pair) == 2 else {}
    if not isinstance(options, Mapping):
        raise TypeError(f"the arguments of {pair[0]!r} in {where} must be a dict, got {options!r}")
    rest = dict(options)
    lengths = [rest.pop(key, usual) for key, usual in zip(LENGTHS, (num_warmup_steps, num_training_steps), strict=True)]
    try:
        return curve_of(pair[0], *lengths, rest)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None
