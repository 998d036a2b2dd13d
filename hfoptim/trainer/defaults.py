"""Whose value is it: did the user change a field of the TrainingArguments, or is it the default of their class?

Subclasses have defaults of their own: TRL's SFTConfig learns at 2e-5, DPOConfig at 1e-6. They stand in a field, in a
default factory, in the signature of an `__init__`, or are put in by `__post_init__`, which may also say one thing in
another (sentence-transformers turns warmup_ratio into warmup_steps). So the class at hand is asked: a second object is
made of it, with nothing given.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import warnings
from enum import Enum
from typing import Any
from weakref import WeakKeyDictionary

from transformers import TrainingArguments

logger = logging.getLogger(__name__)

_found: WeakKeyDictionary[type, Any] = WeakKeyDictionary()


class _Bare(TrainingArguments):
    """TrainingArguments that only hold values: nothing is set up, checked or written to the environment."""

    def __post_init__(self) -> None:
        pass


def changed(args: Any, field: str) -> bool:
    """Whether a field of TrainingArguments has another value than their class gives it.

    Args:
        args: the TrainingArguments.
        field: the field's name.

    Returns:
        Whether the user must have given or set it. A value that equals the default counts as the default, and None as
        not given.
    """
    value = getattr(args, field)
    return value is not None and _plain(value) != _plain(getattr(untouched(args), field, None))


def warmup_changed(args: Any) -> bool:
    """Whether the user asked for warm-up steps: there are some, and not as many as by default."""
    steps = args.get_warmup_steps(1000)
    return bool(steps > 0 and steps != untouched(args).get_warmup_steps(1000))


def untouched(args: Any) -> Any:
    """Arguments of the same class with the class's own defaults, for reading.

    `__init__` and `__post_init__` of subclasses run, those of TrainingArguments itself do not: they would set up
    devices and write into the environment. What is no field, such as the number of processes, is that of `args`. Where
    the subclass fails without what `args` were given, the defaults are those of its dataclass fields.

    Args:
        args: the TrainingArguments.
    """
    kind = type(args)
    if kind not in _found:
        try:
            _found[kind] = _made_anew(args)
        except Exception as error:
            logger.debug("%s cannot be made from nothing (%r): its fields' defaults count", kind.__name__, error)
            return _declared(kind)
    return _found[kind]


def _made_anew(args: Any) -> Any:
    kind = type(args)
    # `super()` in the class at hand leads to _Bare, and from there nowhere.
    twin_class = _Bare if kind is TrainingArguments else type(kind.__name__, (kind, _Bare), {})
    twin: Any = object.__new__(twin_class)
    fields = {field.name for field in dataclasses.fields(kind)}
    vars(twin).update({name: value for name, value in vars(args).items() if name not in fields})
    wanted = {
        name: getattr(args, name)
        for name, parameter in inspect.signature(kind).parameters.items()
        if name == "output_dir" or (parameter.default is parameter.empty and parameter.kind not in _REST)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that nobody gave
        twin.__init__(**wanted)
    return twin


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _declared(kind: type) -> Any:
    twin = object.__new__(_Bare)
    for field in dataclasses.fields(kind):
        factory: Any = field.default_factory
        setattr(twin, field.name, field.default if factory is dataclasses.MISSING else factory())
    return twin


def _plain(value: Any) -> Any:
    """A value as it is compared: names of enums, and numbers that a configuration file has as text."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value.lower()
    return value
