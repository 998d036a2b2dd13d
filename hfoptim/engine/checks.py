"""Checks of hyper-parameters, with messages that say what would be right."""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

# Packages whose code stands between a user and what is warned of.
_BETWEEN = ("hfoptim", "schedules", "torch", "accelerate", "transformers")


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf, high_open: bool = True) -> float:
    """`value` as a float, if it is a number in [low, high).

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinite, or outside the range.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name}={value!r}: a tensor must hold one number")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected a number")
    found = float(value)
    too_high = found >= high if high_open else found > high
    if not math.isfinite(found) or found < low or too_high:
        closing = ")" if high_open else "]"
        raise ValueError(f"{name}={value!r} is out of range, expected a number in [{low:g}, {high:g}{closing}")
    return found


def integer(name: str, value: Any, low: int) -> int:
    """`value`, if it is a whole number of at least `low`.

    Raises:
        TypeError: not a number.
        ValueError: a fraction, NaN, infinite, or too small.
    """
    found = number(name, value, low)
    if found != int(found):
        raise ValueError(f"{name}={value!r} is not a whole number")
    return int(found)


def betas(name: str, value: Any, count: int) -> tuple[float, ...]:
    """`value` as `count` coefficients, each in [0, 1).

    Raises:
        TypeError: not a sequence of numbers.
        ValueError: another length, or a coefficient outside [0, 1).
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected {count} numbers in [0, 1)")
    if len(value) != count:
        raise ValueError(f"{name}={value!r} has {len(value)} entries, expected {count}")
    return tuple(number(f"{name}[{i}]", v, 0.0, 1.0) for i, v in enumerate(value))


def strings(name: str, value: Any) -> list[str]:
    """`value`, an iterable of strings, as a list; a bare string would be taken letter by letter.

    Raises:
        TypeError: a string, or something else than strings.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected a list of strings such as [{value!r}]")
    entries = list(value)
    for entry in entries:
        if not isinstance(entry, str):
            raise TypeError(f"{name} holds {entry!r}, a {type(entry).__name__}, expected strings")
    return entries


def flag(name: str, value: Any, optional: bool = False) -> None:
    """Raise a TypeError unless `value` is a bool (or None, if optional)."""
    if not isinstance(value, bool) and not (optional and value is None):
        expected = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected {expected}")


def group_dict(value: Any) -> dict[str, Any]:
    """`value`, if it is a dict.

    Raises:
        TypeError: it is not, in torch's words.
    """
    if not isinstance(value, dict):
        raise TypeError(f"param_group must be a dict, but got {type(value)}")
    return value


def parameter_name(group: Mapping[str, Any], index: int, position: int) -> str:
    """How a message calls a parameter: by its name, or by its place."""
    names = group.get("param_names")
    return f"parameter {names[position]!r}" if names else f"parameter {position} of group {index}"


def dense(owner: str, grad: Tensor, group: Mapping[str, Any], index: int, position: int) -> None:
    """Raise a TypeError that names the parameter if its gradient is sparse."""
    if grad.layout is not torch.strided:
        raise TypeError(
            f"{parameter_name(group, index, position)} has a sparse gradient ({grad.layout}), which {owner} does not "
            f"take; use a dense one (nn.Embedding(..., sparse=False))"
        )


def unavailable(name: str, value: Any, reason: str) -> None:
    """Raise unless `value` is False: an option that torch's signature has and this engine has not.

    Raises:
        TypeError: not a bool.
        ValueError: True.
    """
    flag(name, value)
    if value:
        raise ValueError(f"{name}=True is not possible here: {reason}")


def closest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase naming the entries of `known` most like `name`, or all of them where none is alike."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return f"did you mean {' or '.join(repr(m) for m in matches)}?" if matches else f"known are {', '.join(known)}"


def known_options(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise a TypeError that names the first option of `given` that is not in `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{owner} has no option {name!r}; {closest(name, known)}")


def warn(message: str) -> None:
    """Warn of something, at the line of the user's that led to it.

    That is the nearest caller outside of this package and of those that call it for the user: torch, accelerate and
    transformers, whose Trainer makes optimizers and schedules by name.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
