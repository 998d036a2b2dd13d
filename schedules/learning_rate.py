"""Learning rates as plain functions of the step, after the TensorFlow classes: WarmUp and PolynomialDecay.

Unlike a curve, which gives a multiplier, these give the learning rate itself. They need no optimizer to be asked, and
``.scheduler(optimizer)`` makes a torch scheduler of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from torch.optim import Optimizer

from .checks import Checked, frozen, real, real_number, whole
from .curves import Curve
from .groups import check_optimizer
from .scheduler import ScheduleLR

_Self = TypeVar("_Self", bound="LearningRate")


class LearningRate(Checked, ABC):
    """A learning rate as a pure function of the step. Subclasses are frozen dataclasses."""

    initial_learning_rate: float

    @abstractmethod
    def __call__(self, step: float) -> float:
        """Return the learning rate at ``step``, a number that is at least 0."""

    def scheduler(self, optimizer: Optimizer, last_epoch: int = -1, *, relative: bool = False) -> ScheduleLR:
        """Return a torch scheduler that drives ``optimizer`` by this learning rate.

        Args:
            optimizer: the optimizer to drive. Call ``step()`` once after each of its steps.
            last_epoch: the last step done; -1 for a new run.
            relative: False: every group's lr is this learning rate, and the lr the groups had is replaced. True: each
                group's own initial lr is multiplied by this learning rate over ``initial_learning_rate``, so that
                groups keep their proportions.

        Raises:
            ValueError: the groups have unequal lrs and ``relative`` is False, or the lr to scale is 0.
        """
        initial = [float(group.get("initial_lr", group["lr"])) for group in check_optimizer(optimizer).param_groups]
        if not relative and len(set(initial)) > 1:
            raise ValueError(
                f"the param groups have unequal learning rates {initial}, and this schedule would give all of them the "
                "same: pass relative=True to keep their proportions, or make the lrs equal"
            )
        return ScheduleLR(optimizer, _Scaled(self, self.initial_learning_rate if relative else None), last_epoch)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_config(cls: type[_Self], config: Mapping[str, Any]) -> _Self:
        """Make the schedule that ``get_config()`` described."""
        return cls(**config)


@frozen
class _Scaled(Curve):
    """A learning rate as a multiplier: over ``unit``, or over each group's own initial lr if ``unit`` is None."""

    learning_rate: Callable[[float], float]
    unit: float | None

    def value(self, step: float) -> float:
        if self.unit is None:
            raise TypeError("a learning rate becomes a multiplier only for a known initial lr: call bind(initial_lr)")
        return float(self.learning_rate(step)) / self.unit

    def bind(self, initial_lr: float) -> _Scaled:
        unit = initial_lr if self.unit is None else self.unit
        if unit == 0:
            raise ValueError("a schedule cannot scale a learning rate of 0: give the optimizer any other lr")
        return _Scaled(self.learning_rate, unit)


@frozen
class PolynomialDecay(LearningRate):
    """``(initial - end) * (1 - min(step, n) / n) ** power + end``, n the steps of the decay: Keras' PolynomialDecay.

    Args:
        initial_learning_rate: learning rate at step 0.
        decay_steps: n, 0 or more. Without steps the learning rate is at its end at once.
        end_learning_rate: learning rate from step n on.
        power: above 0; 1 is a line.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: keras.optimizers.schedules.PolynomialDecay.
    """

    initial_learning_rate: float = real(at_least=0)
    decay_steps: int = whole()
    end_learning_rate: float = real(default=1e-4, at_least=0)
    power: float = real(default=1.0, above=0)

    def __call__(self, step: float) -> float:
        step = real_number("step", step, at_least=0)
        left = 1.0 - min(step, self.decay_steps) / self.decay_steps if self.decay_steps else 0.0
        return float((self.initial_learning_rate - self.end_learning_rate) * left**self.power + self.end_learning_rate)


@frozen
class WarmUp(LearningRate):
    """A warm-up before any decay, after the documented TensorFlow class.

    ``lr(step) = initial_learning_rate * (step / warmup_steps) ** power`` while step < warmup_steps, then
    ``decay_schedule_fn(step - warmup_steps)``.

        >>> warmup = WarmUp(1e-3, PolynomialDecay(1e-3, 900, end_learning_rate=0.0), warmup_steps=100)
        >>> warmup(50), warmup(100), warmup(1000)
        (0.0005, 0.001, 0.0)
        >>> schedule = warmup.scheduler(optimizer)  # doctest: +SKIP

    Args:
        initial_learning_rate: learning rate that the warm-up leads to.
        decay_schedule_fn: learning rate after the warm-up, a function of the steps since its end.
        warmup_steps: steps of the warm-up, 0 or more.
        power: above 0; 1 is a linear warm-up.
        name: kept for the signature's sake, and in ``get_config()``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: transformers v4.34, ``transformers.WarmUp``.
    """

    initial_learning_rate: float = real(at_least=0)
    decay_schedule_fn: Callable[[float], float]
    warmup_steps: int = whole()
    power: float = real(default=1.0, above=0)
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.decay_schedule_fn):
            raise TypeError(f"decay_schedule_fn must be a function of the step, got {self.decay_schedule_fn!r}")
        if isinstance(self.decay_schedule_fn, Curve):
            raise TypeError("decay_schedule_fn must return a learning rate; a Curve returns a multiplier of it")

    def __call__(self, step: float) -> float:
        real_number("step", step, at_least=0)
        if step < self.warmup_steps:
            return float(self.initial_learning_rate * (step / self.warmup_steps) ** self.power)
        return self.decay_schedule_fn(step - self.warmup_steps)
