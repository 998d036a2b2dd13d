"""Schedules one after the other, written down by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..checks import is_list, steps_or_share, whole_number
from ..curves import Curve

__all__ = ["described", "sequential_curve"]


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
    from ..registry import get_curve  # the registry imports the module that imports this one

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
    warmup = rest.pop("num_warmup_steps", num_warmup_steps)
    total = rest.pop("num_training_steps", num_training_steps)
    try:
        return get_curve(pair[0], warmup, total, rest)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from None


def sequential_curve(
    num_warmup_steps: int | float = 0,
    num_training_steps: int | None = None,
    *,
    schedules: Sequence[Curve | str | Sequence[Any]],
    milestones: Sequence[int] = (),
) -> Curve:
    """One schedule after the other: number i from ``milestones[i - 1]`` on, each counting from 0 at its beginning.

        >>> options = {"schedules": [["linear_factor", {"total_iters": 100}], "cosine"], "milestones": [100]}
        >>> get_scheduler("sequential", optimizer, 0, 1000, options)  # doctest: +SKIP

    Args:
        num_warmup_steps: warm-up of the first schedule, where that does not name its own; steps, or a share of T.
        num_training_steps: T; the learning rate stays from there on. None: the last schedule decides.
        schedules: each a name, a pair of a name and a dict of its arguments, or a curve. A
            ``num_training_steps`` that is not given is the number of steps to the next milestone, or to T; the
            ``num_warmup_steps`` of all but the first are 0 unless given.
        milestones: the first steps of the second, third, ... schedule, one less than there are schedules, ascending.

    Raises:
        TypeError: a schedule is none of the three, or takes no such argument.
        ValueError: the numbers of schedules and milestones do not fit, or what :func:`schedules.get_curve` raises.

    Source: torch's SequentialLR.
    """
    if not is_list(schedules) or not schedules:
        raise TypeError(f"schedules must be a list of schedules, got {schedules!r}")
    if not is_list(milestones):
        raise TypeError(f"milestones must be a list of steps, got {milestones!r}")
    starts = [0, *(whole_number("milestones", each, at_least=1) for each in milestones)]
    if starts != sorted(set(starts)):
        raise ValueError(f"milestones must be ascending, got {list(milestones)!r}")
    if len(starts) != len(schedules):
        raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} milestones, got {list(milestones)!r}")
    total = None if num_training_steps is None else whole_number("num_training_steps", num_training_steps)
    warmup = steps_or_share("num_warmup_steps", num_warmup_steps, num_training_steps)
    whole: Curve | None = None
    for index, (schedule, start) in enumerate(zip(schedules, starts, strict=True)):
        end = starts[index + 1] if index + 1 < len(starts) else total
        steps = None if end is None else max(0, end - start)
        curve = described(f"schedules[{index}]", schedule, 0 if index else warmup, steps)
        whole = curve if whole is None else whole.then(curve, at=start)
    assert whole is not None
    return whole if total is None else whole.until(total)
