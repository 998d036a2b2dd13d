"""Which learning rate others train with: for a name and a task, with the source, and whether one is far from all."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from hfoptim.engine.checks import number
from hfoptim.registry.lookup import (
    canonical_name,
    engine_class_of,
    get_optimizer_info,
    inside,
    option_defaults,
    resolve_options,
)
from hfoptim.registry.recommendation import TASKS, Recommendation, Same
from hfoptim.registry.recommended_values import SETTINGS

logger = logging.getLogger(__name__)

# What asks for a recommended learning rate in place of a number.
RECOMMENDED = "recommended"
# How many times a learning rate may be off what others train with before it is warned of.
FAR = 30.0


def recommendations(name: str) -> tuple[Recommendation, ...]:
    """What others train an optimizer with; nothing for one of which no source is known here.

    Around an optimizer, as in `sam_sgd`, are those of that optimizer, but for Mechanic, which finds its own. For
    another package's optimizer, as `bnb_lion8bit`, they are those of ours with its equations.

    Args:
        name: its canonical name.
    """
    wrapper, name = inside(name)
    info = get_optimizer_info(name)
    found: list[Recommendation] = []
    for each in SETTINGS.get(info.algorithm if info.outside else name, ()) if wrapper != "mechanic" else ():
        found += recommendations(each.name) if isinstance(each, Same) else [each]
    return tuple(found)


def take_recommended(name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Recommendation | None]:
    """Options with a number for `lr="recommended"`, and without `task`.

    It is the learning rate of the first recommendation of the table that is for the task and for these options.

    Args:
        name: the optimizer's name.
        options: its options; `task` (default "finetune"), one of `TASKS`, goes with `lr="recommended"`.

    Returns:
        (the options, whose learning rate was taken; None: there was a number, or nothing).

    Raises:
        ValueError: the task is unknown or of no use, or nothing is known for it, or for these options; says what is.
    """
    options, name = dict(options), canonical_name(name)
    task, lr = options.pop("task", None), options.get("lr")
    if lr != RECOMMENDED:
        if task is not None:
            raise ValueError(f"task={task!r} says which learning rate to take for lr='recommended'; give that too")
        return options, None
    task = "finetune" if task is None else task
    if task not in TASKS:
        raise ValueError(f"task={task!r} is none of {', '.join(map(repr, TASKS))}")
    known = recommendations(name)
    of_task = [each for each in known if each.task == task]
    if not of_task:
        others = ", ".join(repr(each) for each in TASKS if any(one.task == each for one in known))
        only = f" and task={task!r}, only for {others}" if others else "; give a number"
        raise ValueError(f"lr='recommended': no source is known for {name}{only}")
    del options["lr"]
    options_in_force = in_force(name, resolve_options(name, options))
    for each in of_task:
        if each.holds(options_in_force):
            return {**options, "lr": each.lr}, each
    needed = " or ".join(f"{option}={values[-1]!r}" for each in of_task for option, values in each.options.items())
    raise ValueError(f"lr='recommended': what is known for {name} and task={task!r} goes with {needed}; give that too")


def in_force(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an optimizer with their values, where some were given. Another package's is not made for that."""
    info = get_optimizer_info(name)
    if not info.outside:
        return {**option_defaults(name), **options}
    signature = inspect.signature(info.opt_class).parameters.values()
    return {**{each.name: each.default for each in signature}, **info.defaults, **options}


def say_taken(name: str, taken: Recommendation) -> str:
    """What the log says of a learning rate that stands for `lr="recommended"`."""
    return f"{name} takes the recommended lr={taken.lr:g} for task={taken.task!r}: {taken}"


def say_if_far(name: str, lr: float | None, options: Mapping[str, Any]) -> str | None:
    """A warning of a learning rate that is more than 30 times larger or smaller than what anybody trains with.

    Args:
        name: the optimizer's canonical name.
        lr: the learning rate; None: the optimizer sets its own.
        options: all its options with their values.

    Returns:
        The warning; None where there is nothing to say, or nothing known.
    """
    known = [each for each in recommendations(name) if each.holds(options)]
    if not lr or not known:
        return None
    nearest = min(known, key=lambda each: abs(math.log(lr / each.lr)))
    times = max(lr / nearest.lr, nearest.lr / lr)
    if times <= FAR or any(each.low <= lr <= each.high for each in known):
        return None
    low, high = min(each.low for each in known), max(each.high for each in known)
    how = "larger" if lr > nearest.lr else "smaller"
    return (
        f"lr={lr:g} is {times:.0f} times {how} than {nearest.lr:g}, which is what "
        f"{name} is trained with ({nearest.of}; {nearest.source}); all that is known here is from {low:g} to {high:g}: "
        f"see `hfoptim info {name}`"
    )


_said: set[str] = set()


def warn_if_far(name: str, options: Mapping[str, Any]) -> None:
    """Warn, once in a process, of a learning rate given that `say_if_far` has a warning for.

    Nothing is said of learning rates that are factors, such as Prodigy's, of which the optimizers themselves warn.

    Args:
        name: the optimizer's name.
        options: the options it is made with, whose values nobody may have checked yet.
    """
    name = canonical_name(name)
    opt_class = get_optimizer_info(name).opt_class
    if getattr(engine_class_of(opt_class) or opt_class, "lr_is_factor", False):
        return
    try:
        lr = number("lr", options.get("lr"))
    except (TypeError, ValueError):
        return  # none was given, or one of which the optimizer itself says what is wrong
    said = say_if_far(name, lr, in_force(name, options))
    if said is not None and said not in _said:
        _said.add(said)
        logger.warning(said)
