"""Checks of hyper-parameters, with messages that say what would be right.

Those of a value return it as Python's own: float, int, str, tuple. What else there is, numbers of NumPy, 0-d tensors,
lists of a configuration's own class, works as long as a run lasts, and then makes a checkpoint that
`torch.load(weights_only=True)` refuses. Where a number is wanted, text that holds exactly a number is that number.
"""

from __future__ import annotations

import difflib
import math
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

_LEAST_FACTOR = 1e-2
# Packages whose code stands between a user and what is warned of.
_BETWEEN = ("hfoptim", "schedules", "torch", "accelerate", "transformers")


def shape_in_model(name: str, param: Tensor) -> torch.Size:
    """The shape that a parameter has in its model, by which it is sorted: also where only a part of it is here.

    Args:
        name: its name.
        param: the parameter.

    Raises:
        ValueError: FSDP1 has flattened it, and keeps to itself what it was.
    """
    if hasattr(param, "_fsdp_flattened"):
        raise ValueError(
            f"{name}: FullyShardedDataParallel (FSDP1) has flattened the parameters, and their shapes decide here "
            f"which get weight decay, or which are matrices; train with FSDP2 (fully_shard), or give parameter groups"
        )
    shape: torch.Size = getattr(param, "ds_shape", param.shape)  # as DeepSpeed's zero.Init keeps it
    return shape


def plain(value: Any) -> Any:
    """`value` as an int, a float or a str of Python's own, if that is what it stands for; anything else as it is.

    Text that holds exactly a number stands for the number: YAML's readers take `1e-6` for text.
    """
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str):
        try:
            whole = value.strip().lstrip("+-").replace("_", "").isdecimal()
            return int(value) if whole else float(value)
        except ValueError:
            return str(value)
    try:
        item = value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return value
    return item if isinstance(item, (int, float)) else value


def entries(value: Any) -> tuple[Any, ...] | None:
    """The entries of a sequence of whatever class, or of a vector of NumPy or torch; None for anything else."""
    if isinstance(value, Sequence):
        return None if isinstance(value, (str, bytes)) else tuple(value)
    return tuple(value.tolist()) if getattr(value, "ndim", 0) == 1 else None


def number(name: str, value: Any, low: float = 0.0, high: float = math.inf, high_open: bool = True) -> float:
    """`value` as a float, if it is a number in [low, high), or text that holds one.

    Raises:
        TypeError: not a number.
        ValueError: NaN, infinite, or outside the range.
    """
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{name}={value!r}: a tensor must hold one number")
    read = plain(value)
    if isinstance(read, bool) or not isinstance(read, Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected a number")
    found = float(read)
    too_high = found >= high if high_open else found > high
    if not math.isfinite(found) or found < low or too_high:
        closing = ")" if high_open else "]"
        raise ValueError(f"{name}={value!r} is out of range, expected a number in [{low:g}, {high:g}{closing}")
    return found


def learning_rate(name: str, value: Any) -> Any:
    """A learning rate as a float, or as the tensor it is: schedules fill a tensor of one number in place.

    Raises:
        TypeError, ValueError: as `number`.
    """
    found = number(name, value)
    # A tensor of whole numbers could not hold what a schedule writes into it.
    return value if isinstance(value, Tensor) and value.is_floating_point() else found


def factor(owner: str, lr: float) -> None:
    """Warn of a learning rate that was meant for another optimizer, such as TrainingArguments' default of 5e-5.

    Args:
        owner: the optimizer, whose step size lr multiplies.
        lr: the largest of all groups.
    """
    if 0.0 < lr < _LEAST_FACTOR:
        warn(
            f"a learning rate of {lr:g} multiplies the step size that {owner} finds by itself, so that it hardly "
            f"moves; leave it at 1.0"
        )


def integer(name: str, value: Any, low: int) -> int:
    """`value` as an int, if it is a whole number of at least `low`, or text that holds one.

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
    found = entries(value)
    if found is None:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected {count} numbers in [0, 1)")
    if len(found) != count:
        raise ValueError(f"{name}={value!r} has {len(found)} entries, expected {count}")
    return tuple(number(f"{name}[{i}]", v, 0.0, 1.0) for i, v in enumerate(found))


def strings(name: str, value: Any) -> list[str]:
    """`value`, an iterable of strings, as a list; a bare string would be taken letter by letter.

    Raises:
        TypeError: a string, or something else than strings.
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected a list of strings such as [{value!r}]")
    found = list(value)
    for entry in found:
        if not isinstance(entry, str):
            raise TypeError(f"{name} holds {entry!r}, a {type(entry).__name__}, expected strings")
    return [str(entry) for entry in found]


def choice(name: str, value: Any, choices: Collection[str] = ()) -> str:
    """`value` as text, if it is one of `choices`; any text where there are none.

    Raises:
        TypeError: no text.
        ValueError: another one; the message has the closest.
    """
    if not isinstance(value, str):
        expected = f"one of {', '.join(choices)}" if choices else "text"
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected {expected}")
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r} is not known; {closest(value, choices)}")
    return str(value)


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


def warn(message: str) -> None:
    """Warn of something, at the line of the user's that led to it.

    That is the nearest caller outside of this package and of those that call it for the user: torch, accelerate and
    transformers, whose Trainer makes optimizers and schedules by name.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def portable(value: Any) -> Any:
    """`value` with every number, text and sequence in it as Python's own, for a state_dict; tensors stay.

    The checks see what an optimizer is given. This is for what others write into groups later: `group["lr"] *= 0.5`
    with a number of NumPy, a sampler's whole configuration under a key of its own.
    """
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {portable(key): portable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [portable(each) for each in value]
    found = entries(value)
    if found is not None:
        return tuple(portable(each) for each in found)
    if isinstance(value, (int, float)):  # classes derived from them: enumerations, NumPy's float64
        return float(value) if isinstance(value, float) else int(value)
    return plain(value)
