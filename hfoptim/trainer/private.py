"""All that touches parts of transformers, accelerate and enum which are not their public interface.

Checked with transformers 4.57 and 5.23, accelerate 1.15, Python 3.10 to 3.13. When a new release breaks hfoptim, this
is the file to look at.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

from transformers import Trainer, hf_argparser
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

__all__ = [
    "OptimizerNames",
    "SchedulerType",
    "add_member",
    "add_schedule_function",
    "choice_reader",
    "decay_parameter_names",
    "keep_scheduler",
    "remove_member",
    "remove_schedule_function",
    "replace",
    "trainer_in_charge",
]


def trainer_in_charge() -> Any:
    """The `Trainer` whose event is being handled.

    transformers hands a callback the arguments, state, control and model, but not the trainer (4.57 and 5.x). Every
    event is fired from a method of the trainer, so it is the `self` of the nearest caller that is a Trainer. The other
    way would be to replace methods of the class for every trainer of the process, those without the callback included.

    Returns:
        The trainer.

    Raises:
        RuntimeError: no transformers.Trainer is among the callers.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, Trainer):
            return owner
        frame = frame.f_back  # type: ignore[assignment]
    raise RuntimeError("OptimizerCallback works in a transformers.Trainer (or a subclass of it) only")


def keep_scheduler(trainer: Any, scheduler: Any) -> None:
    """Give a trainer its schedule, marked as made by itself, so that the next train() makes a new one (4.57, 5.x)."""
    trainer.lr_scheduler = scheduler
    trainer._created_lr_scheduler = True


def decay_parameter_names(model: Any) -> list[str]:
    """The names of the parameters that the Trainer gives weight decay: not biases and normalisation layers.

    A method that uses nothing of its trainer (4.57 and 5.x).
    """
    return list(Trainer.get_decay_parameter_names(None, model))


def add_member(kind: Any, name: str, value: str, restore: Callable[[str, str], Enum]) -> Any:
    """Add a member to a string enum, seen by `kind(value)`, iteration, `len`, `kind.NAME` and pickle.

    Args:
        kind: the enum class (`OptimizerNames`, `SchedulerType`).
        name: the member's name, in capitals; must be free.
        value: the string.
        restore: called as `restore(kind.__name__, value)` when a pickled member is read.

    Returns:
        The member.
    """
    member: Any = str.__new__(kind, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = kind
    member._sort_order_ = len(kind._member_names_)
    # A pickled member is read in a process that may not have the names yet, so reading it goes through `restore`.
    # pickle looks this method up on the object, copy and deepcopy on its class.
    member.__reduce_ex__ = lambda protocol: (restore, (kind.__name__, value))
    kind._member_names_.append(name)
    kind._member_map_[name] = member
    kind._value2member_map_[value] = member
    # The metaclass forbids to reassign members, and from Python 3.12 on looks them up as plain class attributes.
    type.__setattr__(kind, name, member)
    return member


def remove_member(kind: Any, member: Any) -> None:
    """Undo `add_member`."""
    kind._member_names_.remove(member._name_)
    del kind._member_map_[member._name_]
    del kind._value2member_map_[member._value_]
    type.__delattr__(kind, member._name_)


def add_schedule_function(member: Any, function: Callable[..., Any]) -> None:
    """Let `transformers.get_scheduler` build the schedule `member` with `function`.

    It calls `function(optimizer, num_warmup_steps=..., num_training_steps=..., **scheduler_specific_kwargs)`.
    """
    TYPE_TO_SCHEDULER_FUNCTION[member] = function


def remove_schedule_function(member: Any) -> None:
    """Undo `add_schedule_function`."""
    del TYPE_TO_SCHEDULER_FUNCTION[member]


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Put `make(original)` in the place of an attribute that `owner` itself defines.

    Args:
        owner: a class or module.
        name: the attribute.
        make: gets the original as stored (a staticmethod object stays one) and returns the replacement.

    Returns:
        A function that puts the original back. If somebody has since put something else there, that stays: it may
        call our replacement, which is why replacements pass everything on when hfoptim's names are disabled.
    """
    original = vars(owner)[name]
    replacement = make(original)
    setattr(owner, name, replacement)

    def undo() -> None:
        if vars(owner)[name] is replacement:
            setattr(owner, name, original)

    return undo


def choice_reader(read: Callable[[Any, str], str]) -> Callable[[], None]:
    """Let the command line accept spellings of a choice that are not listed.

    HfArgumentParser hands argparse the values of an enum as `choices`, and a function made by
    `hf_argparser.make_choice_type_function(choices)` to turn the word into one of them (4.57 and 5.x).

    Args:
        read: `read(enum, word)` returns the listed value that the word means, or raises ValueError.

    Returns:
        A function that undoes it.
    """

    def make(original: Callable[[list[Any]], Callable[[str], Any]]) -> Callable[[list[Any]], Callable[[str], Any]]:
        def make_choice_type_function(choices: list[Any]) -> Callable[[str], Any]:
            plain = original(choices)
            for kind in (OptimizerNames, SchedulerType):
                if list(choices) == [member.value for member in kind]:
                    return lambda word: _read_choice(read, kind, plain(word), choices)
            return plain

        return make_choice_type_function

    return replace(hf_argparser, "make_choice_type_function", make)


def _read_choice(read: Callable[[Any, str], str], kind: Any, word: Any, choices: list[Any]) -> Any:
    try:
        value = read(kind, word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if value not in choices:  # the parser's own list, which it looks the value up in next
        choices.append(value)
    return value
