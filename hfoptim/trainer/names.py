"""Names for `TrainingArguments(optim=...)` and `lr_scheduler_type`: `enable()` and `disable()`.

transformers converts both arguments with `OptimizerNames(value)` and `SchedulerType(value)` as soon as they are made,
and the command line lists the members of these enums. So the names have to be members. Every optimizer `x` of the
catalogue becomes `hfoptim_x`, and plain `x` too unless transformers has that name; the same for schedules.
"""

from __future__ import annotations

import argparse
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from hfoptim import registry, schedules
from hfoptim.trainer import arguments, build, checkpoints, making, methods, private, replacing
from hfoptim.trainer.private import OptimizerNames, SchedulerType

logger = logging.getLogger(__name__)

PREFIX = "hfoptim_"


class UnknownName(ValueError, argparse.ArgumentTypeError):
    """A name that nobody knows. A command line shows the message of an ArgumentTypeError, not that of a ValueError."""


class _Names:
    """The names of one enum: which of its values are ours, and what they mean.

    Args:
        kind: the enum class.
        catalogue: the canonical names to add.
        canonical: turns any spelling into a canonical name, or raises ValueError.
        word: what a name stands for, for messages.
    """

    def __init__(self, kind: Any, catalogue: Iterable[str], canonical: Callable[[str], str], word: str) -> None:
        self.kind = kind
        self.canonical = canonical
        self.word = word
        self.members: dict[Enum, str] = {}
        for name in catalogue:
            for value in (name, PREFIX + name):
                if value not in kind._value2member_map_:
                    self._add(value, name)
        kind._missing_ = classmethod(lambda cls, value: self.find(value))

    def _add(self, value: str, name: str) -> Enum:
        member: Enum = private.add_member(self.kind, self._free(value), value, _restore)
        self.members[member] = name
        return member

    def _free(self, value: str) -> str:
        """A member name: the value in capitals, with an end where that is taken (LION is "lion_32bit")."""
        name = value.upper()
        return name if name not in self.kind._member_map_ else f"{name}_HFOPTIM"

    def ours(self, value: Any) -> str | None:
        """The canonical name that `value` means, or None when it is transformers' own (or nobody's)."""
        return self.members.get(value)

    def find(self, value: Any) -> Enum:
        """The member that a spelling not listed means: another case, `-` for `_`, or an alias.

        Raises:
            UnknownName: nobody knows the name; lists the closest ones.
        """
        if isinstance(value, str):
            plain = value.strip().lower().replace("-", "_")
            if plain in self.kind._value2member_map_:
                member: Enum = self.kind(plain)
                return member
            try:
                name = self.canonical(plain.removeprefix(PREFIX))
            except ValueError:
                pass
            else:
                # An alias is not a name of transformers, so it means ours even where the plain name is theirs.
                own = [member for member, meaning in self.members.items() if meaning == name]
                # An optimizer with another one around it (`lookahead_lion`) is listed once it was asked for.
                return own[0] if own else self._add(name, name)
        with arguments.checking():
            raise UnknownName(self._unknown(value))

    def _unknown(self, value: Any) -> str:
        known = [member.value for member in self.kind]
        return (
            f"{value!r} is not {self.word} ({self.kind.__name__}); {_closest(str(value), known)}. "
            f"All names: {', '.join(known)}"
        )

    def remove(self) -> None:
        del self.kind._missing_
        for member in self.members:
            private.remove_member(self.kind, member)


class _Enabled:
    """Everything `enable()` put into transformers."""

    def __init__(self) -> None:
        self.replace = False
        self.optimizers = _Names(
            OptimizerNames, map(str, registry.list_optimizers()), registry.canonical_name, "the name of an optimizer"
        )
        self.schedules = _Names(
            SchedulerType, schedules.list_schedules(), schedules.canonical_schedule_name, "the name of a schedule"
        )
        for member, name in self.schedules.members.items():
            private.add_schedule_function(member, functools.partial(build.schedule_by_name, name))
        self.undo = [
            private.replace(TrainingArguments, "__post_init__", _checking_post_init),
            *private.last_checkpoint_finder(_finding_whole, scripts=True),
            private.choice_reader(lambda kind, word: kind(word).value),
            private.open_choices(lambda value: value in self.optimizers.members or value in self.schedules.members),
        ]
        methods.serve_others(_ByName())

    def remove(self) -> None:
        methods.serve_others(None)
        for undo in reversed(self.undo):
            undo()
        for member in self.schedules.members:
            private.remove_schedule_function(member)
        self.optimizers.remove()
        self.schedules.remove()


_enabled: _Enabled | None = None


def enable(replace: bool = False) -> None:
    """Add every optimizer and schedule of hfoptim to the names transformers knows. Idempotent.

    Args:
        replace (default False): whether ours stand for those of transformers' own optimizers that need a package each:
            `galore_*`, `apollo_*`, `lomo`, `adalomo`, `grokadamw`, `schedule_free_*`, `stable_adamw`. They take
            the `optim_args` that transformers' take, and `learning_rate`, `weight_decay`, ... whether changed or not.
            Arguments made so have `optim="hfoptim_lomo"`, with what is handed over in `optim_args`.

    From then on `TrainingArguments(optim="lion", lr_scheduler_type="hfoptim_cosine")`, the command line
    (`--optim lion`), configuration files and pickled arguments take them, in any case, with `-` or `_`. Names that
    transformers owns (`adafactor`, `sgd`, `linear`, ...) keep their meaning; ours are always there as
    `hfoptim_<name>`.

    `TrainingArguments.optim_args` of one of our optimizers is JSON or `name=value,...` with tuples, flags and None,
    and is checked as soon as the arguments are made. `lr_scheduler_kwargs` may be written so, too, and
    `--resume_from_checkpoint True` is the flag.

    A command line that has names frozen, such as `choices=["linear", "cosine"]` beside `type=SchedulerType` in
    transformers' scripts without a Trainer, takes ours as well: argparse's check of choices lets members of the two
    enums pass that are ours.

    `trainer.train(resume_from_checkpoint=True)` and `transformers.trainer_utils.get_last_checkpoint` pass over
    checkpoints that a killed run left unfinished, see `last_whole_checkpoint`.
    """
    global _enabled
    if _enabled is None:
        _enabled = _Enabled()
    _enabled.replace = replace


def disable() -> None:
    """Take back all that `enable()` changed in transformers. Idempotent."""
    global _enabled
    if _enabled is not None:
        _enabled.remove()
        _enabled = None


def _restore(kind: str, value: str) -> Any:
    """Read a pickled name. Names that are not there cannot be read, so they are enabled first."""
    if _enabled is None:
        logger.info("enabling hfoptim's names in transformers: a pickled object has %r in it", value)
        enable()
    return {"OptimizerNames": OptimizerNames, "SchedulerType": SchedulerType}[kind](value)


def _our_optimizer(args: Any) -> str | None:
    return _enabled.optimizers.ours(args.optim) if _enabled is not None else None


def our_schedule(args: Any) -> str | None:
    """The canonical name of the schedule that the TrainingArguments ask for, if it is one of ours."""
    return _enabled.schedules.ours(args.lr_scheduler_type) if _enabled is not None else None


def _checking_post_init(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def __post_init__(self: Any) -> None:
        if _enabled is None:
            return original(self)
        arguments.read_text(self)
        if _enabled.replace:
            with arguments.checking():
                replacing.replace(self, PREFIX)
        original(self)
        arguments.check(self, _our_optimizer(self), our_schedule(self))

    return __post_init__


class _ByName:
    """Makes the optimizers and schedules of trainers whose arguments have our names."""

    chosen_schedule: str | None = None
    schedule_options: Mapping[str, Any] | None = None

    def optimizer_cls_and_kwargs(
        self, args: Any, model: Any | None, trainer: Any | None
    ) -> tuple[type, dict[str, Any]] | None:
        name = _our_optimizer(args)
        if name is None:
            return None
        with arguments.checking():
            resolved = build.Choice.from_arguments(name, args).resolve(args)
            return making.class_and_kwargs(resolved, args, model, trainer)

    def make_schedule(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any | None:
        return build.own_schedule(optimizer)


def _finding_whole(original: Callable[[str], str | None]) -> Callable[[str], str | None]:
    @functools.wraps(original)
    def get_last_checkpoint(folder: str) -> str | None:
        return original(folder) if _enabled is None else checkpoints.last_whole_checkpoint(folder)

    return get_last_checkpoint


def _closest(wanted: str, known: list[str]) -> str:
    import difflib

    plain = wanted.strip().lower().replace("-", "_")
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    return f"the closest are {', '.join(map(repr, near))}" if near else "no name is close to it"
