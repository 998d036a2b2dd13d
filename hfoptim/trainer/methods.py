"""The methods of transformers.Trainer in which a trainer makes its optimizer and its schedule, for all trainers.

Subclasses override `get_optimizer_cls_and_kwargs` and `create_scheduler` and call `super()`. So ours stand where that
ends, in Trainer itself, and ask whose trainer it is: one with an `OptimizerCallback`, one whose arguments have one of
our names, or neither. For the last they do what Trainer does.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformers import Trainer, TrainerCallback

from hfoptim.trainer import (
    advice,
    checkpoints,
    coverage,
    flattening,
    groups,
    losses,
    modes,
    owners,
    private,
    release,
    second_pass,
)

MAKER, SCHEDULE = "_hfoptim_maker", "_hfoptim_schedule"


class Maker(Protocol):
    """What makes a trainer's optimizer and schedule."""

    @property
    def chosen_schedule(self) -> str | None:
        """The name of the schedule it makes; None: that of the arguments."""

    @property
    def schedule_options(self) -> Mapping[str, Any] | None:
        """The options of the schedule that are not in the arguments; None: there are none but those."""

    def optimizer_cls_and_kwargs(
        self, args: Any, model: Any | None, trainer: Any | None
    ) -> tuple[type, dict[str, Any]] | None:
        """As `Trainer.get_optimizer_cls_and_kwargs`; None: the Trainer's own."""

    def make_schedule(self, trainer: Any, optimizer: Any, num_training_steps: int) -> Any | None:
        """The schedule of a trainer that has none yet; None: the Trainer's own."""


def take_charge(trainer: Any, maker: Maker) -> None:
    """Have one trainer's optimizer and schedule made by `maker`, whatever its arguments say."""
    setattr(trainer, MAKER, maker)
    install()


def serve_others(maker: Maker | None) -> None:
    """Have all other trainers' optimizers and schedules made by `maker`, where it makes them; None ends that."""
    global _for_others
    _for_others = maker
    if maker is not None:
        install()


def maker_of(trainer: Any | None) -> Maker | None:
    """What makes a trainer's optimizer and schedule; without a trainer, those of any."""
    return vars(trainer).get(MAKER, _for_others) if trainer is not None else _for_others


def schedule_was_made(trainer: Any) -> bool:
    """Whether the maker of a trainer was asked for its schedule and made one."""
    return SCHEDULE in vars(trainer)


_for_others: Maker | None = None


class Attending(TrainerCallback):
    """Sees to what our optimizers ask of a trainer, also where its class makes the schedule in a way of its own."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        _attend(trainer, trainer.optimizer, state.max_steps)


def _attend(trainer: Any, optimizer: Any, num_training_steps: int) -> None:
    flattening.attend(trainer, optimizer)
    maker = maker_of(trainer)
    if maker is not None:
        checkpoints.attend(trainer)
        modes.attend(trainer, optimizer)
        release.attend(trainer, optimizer)
        second_pass.attend(trainer, optimizer)
        schedule = maker.chosen_schedule or trainer.args.lr_scheduler_type.value
        advice.attend(trainer, optimizer, schedule, num_training_steps, maker.schedule_options)
    owners.attend(trainer, optimizer)
    losses.attend(trainer, optimizer)
    coverage.attend(trainer, optimizer)


# -- in place of Trainer's own ----------------------------------------------------------------------------------------


class _MethodOfMany(staticmethod):  # type: ignore[type-arg]  # has none when it runs
    """A static method that knows the object that it is called on, `super()` included, where there is one.

    Args:
        plain: the function to call on the class.
        make: called as `make(trainer, ...)`, with the object.
    """

    def __init__(self, plain: Callable[..., Any], make: Callable[..., Any]) -> None:
        super().__init__(plain)
        self.make = make

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self.__func__ if instance is None else functools.partial(self.make, instance)


def _building(original: Any) -> staticmethod[..., Any]:
    def build(trainer: Any | None, args: Any, model: Any = None) -> Any:
        maker = maker_of(trainer)
        made = None if maker is None else maker.optimizer_cls_and_kwargs(args, model, trainer)
        if made is None:
            return original.__get__(trainer, Trainer)(args, model)
        if trainer is not None and not any(isinstance(c, Attending) for c in trainer.callback_handler.callbacks):
            trainer.add_callback(Attending())
        return made

    @functools.wraps(original.__get__(None, Trainer))
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> Any:
        try:
            trainer = private.trainer_in_charge()
        except RuntimeError:  # nobody's
            trainer = None
        return build(trainer, args, model)

    return _MethodOfMany(get_optimizer_cls_and_kwargs, build)


def _scheduling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        maker, used = maker_of(self), self.optimizer if optimizer is None else optimizer
        if self.optimizer_cls_and_kwargs is not None:
            groups.give_names(used, self.model)
        _attend(self, used, num_training_steps)
        if maker is not None and self.lr_scheduler is None:
            schedule = maker.make_schedule(self, used, num_training_steps)
            if schedule is not None:
                private.keep_scheduler(self, schedule)
                setattr(self, SCHEDULE, schedule)
        return original(self, num_training_steps=num_training_steps, optimizer=optimizer)

    return create_scheduler


_ours: dict[str, Any] = {}
_installing = threading.Lock()


def install() -> None:
    """Put ours into Trainer, unless they are there. Somebody may have put back what he found before."""
    with _installing:
        for name, make in (("get_optimizer_cls_and_kwargs", _building), ("create_scheduler", _scheduling)):
            if name not in _ours or vars(Trainer)[name] is not _ours[name]:
                private.replace(Trainer, name, make)
                _ours[name] = vars(Trainer)[name]


# When this is imported, not when the first trainer asks: unpickled trainers do not.
install()
