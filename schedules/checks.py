"""Checks of arguments. Each returns the value in its plain form or raises an error that names the argument.

Dataclasses declare theirs with the field: ``rate: float = real(at_least=0, at_most=1)`` in a class under :func:`frozen`
that is a :class:`Checked`.
"""

from __future__ import annotations

import difflib
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeGuard, TypeVar

from typing_extensions import dataclass_transform

_T = TypeVar("_T")

# Packages whose code stands between a user and what is warned of.
_BETWEEN = ("hfoptim", "schedules", "torch", "accelerate", "transformers")


def plain(value: Any) -> Any:
    """Return ``value`` as an int or a float of Python's own, if that is what it stands for; anything else as it is.

    Text that holds exactly a number stands for it: YAML's readers take ``1e-6`` for text. NumPy's numbers and tensors
    of one number are taken out of their classes: in a state dict ``torch.load(weights_only=True)`` would not read them.
    """
    if isinstance(value, str):
        try:
            whole = value.strip().lstrip("+-").replace("_", "").isdecimal()
            return int(value) if whole else float(value)
        except ValueError:
            return value
    if value is None or type(value) in (int, float, bool):
        return value
    try:
        item = value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value
    return item if isinstance(item, int | float) else value


def whole_number(name: str, value: Any, at_least: int = 0) -> int:
    """Return ``value`` as an int.

    Args:
        name: the argument's name, for the error.
        value: an int, anything with ``__index__``, a float without a fraction such as ``300.0``, or what :func:`plain`
            makes one of (text, NumPy's numbers, 0-d tensors).
        at_least: the smallest value allowed.

    Raises:
        TypeError: ``value`` is not a number, or a bool.
        ValueError: ``value`` has a fraction, is NaN or infinite, or is below ``at_least``.
    """
    given, value = value, plain(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{name} must be a whole number, got {given!r}; round it first, e.g. round({name})")
        number = int(value)
    else:
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an int, got {given!r} of type {type(given).__name__}") from None
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got the bool {value!r}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def steps_or_share(name: str, value: Any, total: Any) -> int:
    """Return a number of steps that may be given as a share of the total, above 0 and below 1, rounded up.

    Raises:
        TypeError, ValueError: as :func:`whole_number`, or a share without a total.
    """
    value = plain(value)
    if isinstance(value, float) and 0.0 < value < 1.0 and name != "num_training_steps":
        if total is None:
            raise ValueError(f"{name}={value!r} is a share of num_training_steps, which is not given")
        return math.ceil(whole_number("num_training_steps", total) * value)
    return whole_number(name, value)


def real_number(
    name: str,
    value: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> float:
    """Return ``value`` as a float.

    Args:
        name: the argument's name, for the error.
        value: an int, a float, text that holds exactly a number, or anything with ``__float__`` (NumPy's numbers, 0-d
            tensors).
        at_least: the smallest value allowed.
        above: a bound the value must exceed.
        at_most: the largest value allowed.
        below: a bound the value must stay under.

    Raises:
        TypeError: ``value`` is not a number, or a bool.
        ValueError: ``value`` is NaN, infinite or out of bounds.
    """
    found = plain(value)
    if isinstance(found, bool | str | bytes) or not hasattr(found, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(found)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number!r}")
    if at_least is not None and number < at_least:
        raise ValueError(f"{name} must be at least {at_least:g}, got {number!r}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be above {above:g}, got {number!r}")
    if at_most is not None and number > at_most:
        raise ValueError(f"{name} must be at most {at_most:g}, got {number!r}")
    if below is not None and number >= below:
        raise ValueError(f"{name} must be below {below:g}, got {number!r}")
    return number


def is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    """Say whether ``value`` is a sequence of whatever class, and not text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def number_list(name: str, value: Any, count: int, **bounds: float) -> list[float]:
    """Return ``count`` floats: those of ``value``, a sequence of as many numbers, or a number ``count`` times.

    Args:
        name: the argument's name, for the error.
        value: a number, or a sequence of numbers of any class, one for each param group.
        count: how many there must be.
        **bounds: of each, as for :func:`real_number`.

    Raises:
        TypeError, ValueError: as :func:`real_number`, or there are more or fewer numbers.
    """
    values = list(value) if is_list(value) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} must be a number or {count} numbers, one for each param group; got {value!r}")
    return [real_number(name, each, **bounds) for each in values]


def choice(name: str, value: Any, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``, else raise a ValueError that lists them and names the closest."""
    options = tuple(options)
    if value not in options:
        hint = did_you_mean(value, options)
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}{hint}")
    return str(value)


def did_you_mean(wanted: Any, options: Iterable[str]) -> str:
    """Return ``: did you mean 'linear'?`` with the nearest of ``options``, or nothing where none is near."""
    near = difflib.get_close_matches(wanted.strip().lower(), [*options], n=1) if isinstance(wanted, str) else []
    return f": did you mean {near[0]!r}?" if near else ""


def closest(wanted: str, options: Iterable[str]) -> str:
    """Say which of ``options`` are nearest to ``wanted``, as the tail of an error message."""
    options = sorted(options)
    near = difflib.get_close_matches(wanted, options, n=3, cutoff=0.5)
    # An abbreviation ("wsd") is near nothing: then the whole list helps more than a guess.
    if near:
        return "the closest names are " + ", ".join(map(repr, near))
    return "the names are " + ", ".join(map(repr, options)) if options else "there are none"


def warn(message: str) -> None:
    """Warn of something, at the line of the user's that led to it.

    That is the nearest caller outside of this package and of those that call it for the user: torch, accelerate and
    transformers, whose Trainer makes optimizers and schedules by name.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


class Checked:
    """A dataclass whose fields are checked, and made plain, where they were declared with a check."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            check, value = each.metadata.get("check"), getattr(self, each.name)
            if check is not None and not (value is None and each.default is None):
                checked = check(each.name, value)
                # An int stays an int, so that a curve prints as it was written.
                if type(value) not in (int, float):
                    object.__setattr__(self, each.name, checked)


def real(*, default: Any = MISSING, called: str | None = None, **bounds: float) -> Any:
    """Declare a field that holds a number.

    Args:
        default: None: it may also be None.
        called: what errors call it, if not by the field's name.
        **bounds: as for :func:`real_number`.
    """
    return _field(default, lambda name, value: real_number(called or name, value, **bounds))


def whole(*, default: Any = MISSING, called: str | None = None, at_least: int = 0) -> Any:
    """Declare a field that holds a whole number; arguments as for :func:`real`, and at least 0 by default."""
    return _field(default, lambda name, value: whole_number(called or name, value, at_least))


def numbers(*, default: Any = MISSING, **bounds: float) -> Any:
    """Declare a field that holds a tuple of numbers; arguments as for :func:`real`."""
    return _field(default, lambda name, value: tuple(real_number(name, each, **bounds) for each in value))


def one_of(options: Iterable[str], *, default: Any = MISSING) -> Any:
    """Declare a field that holds one of some words."""
    return _field(default, lambda name, value: choice(name, value, options))


def _field(default: Any, check: Callable[[str, Any], Any]) -> Any:
    return field(default=default, metadata={"check": check})


@dataclass_transform(frozen_default=True, field_specifiers=(real, whole, numbers, one_of, field))
def frozen(cls: type[_T]) -> type[_T]:
    """Make a frozen dataclass: it compares, hashes, pickles and prints by its fields."""
    return dataclass(frozen=True)(cls)
