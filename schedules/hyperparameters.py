"""Weight decay, betas, momentum and all other numbers of an optimizer's groups, by a curve over the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, overload

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checks import real_number
from .curves import Curve
from .following import Followers, Following
from .groups import copy_lrs
from .scheduler import FollowsCurves, ScheduleLR
from .table import described


class HyperparameterSchedule(FollowsCurves):
    """Hyper-parameters that follow curves, while something else, or nothing, moves the learning rate.

    What :func:`schedule_hyperparameter` returns. Step it after each step of the optimizer, like any torch scheduler.
    ``hyperparameters.at(step)`` gives the values at any step.

    Args:
        optimizer: the optimizer to drive.

    Raises:
        TypeError: ``optimizer`` is not an optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.hyperparameters = Followers()
        groups = [group for group in optimizer.param_groups if "initial_lr" not in group]
        super().__init__(optimizer)
        for group in groups:
            del group["initial_lr"]  # A schedule of the lr that comes later has to find out for itself.

    def get_lr(self) -> list[Any]:
        """Return the learning rates as they are."""
        return copy_lrs(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and initial and current values: ``torch.load(weights_only=True)`` reads it."""
        hyperparameters = self.hyperparameters.state(self.optimizer)
        return {"last_epoch": self.last_epoch, "_step_count": self._step_count, "hyperparameters": hyperparameters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, and put its values back into the optimizer.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            ValueError: the state is of another schedule or of other hyper-parameters. Nothing is changed then.
        """
        if "hyperparameters" not in state_dict or "base_lrs" in state_dict:
            raise ValueError("not the state of a HyperparameterSchedule")
        hyperparameters = self.hyperparameters.check_state(state_dict["hyperparameters"])
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        self.hyperparameters.load(self.optimizer, hyperparameters, self.last_epoch)


_Schedule = TypeVar("_Schedule", ScheduleLR, HyperparameterSchedule)
_Named = str | tuple[str, Mapping[str, Any]]


@overload
def schedule_hyperparameter(
    optimizer: Optimizer, name: str, curve: Curve | _Named, schedule: None = None, groups: Iterable[int] | None = None
) -> HyperparameterSchedule: ...


@overload
def schedule_hyperparameter(
    optimizer: Optimizer, name: str, curve: Curve | _Named, schedule: _Schedule, groups: Iterable[int] | None = None
) -> _Schedule: ...


def schedule_hyperparameter(
    optimizer: Optimizer,
    name: str,
    curve: Curve | _Named,
    schedule: ScheduleLR | HyperparameterSchedule | None = None,
    groups: Iterable[int] | None = None,
) -> ScheduleLR | HyperparameterSchedule:
    """Let a hyper-parameter follow a curve: ``value(t) = initial value * curve(t)`` in every param group.

        >>> schedule = schedules.get_scheduler("linear", optimizer, 100, 1000)  # doctest: +SKIP
        >>> schedule_hyperparameter(optimizer, "weight_decay", cosine(1000), schedule)  # doctest: +SKIP
        >>> from_095_to_0999 = linear(1000).between(absolute(0.999), absolute(0.95))  # doctest: +SKIP
        >>> schedule_hyperparameter(optimizer, "beta2", from_095_to_0999, schedule)  # doctest: +SKIP

    The initial value is that which the group has now, and is kept in the group as ``initial_<name>``. A group where it
    is 0, such as that without weight decay, stays at 0. ``absolute(x)`` stands for the value x itself.

    Args:
        optimizer: the optimizer.
        name: a key of the param groups that holds a number, such as ``weight_decay``, ``momentum``, ``eps``; ``beta1``,
            ``beta2``, ... for a number of the tuple ``betas``; ``key[i]`` for one of another tuple. ``momentum`` is
            beta1 where there is no momentum.
        curve: the multiplier; or the name of a schedule, alone or with a dict of all its arguments: ``("cosine",
            {"num_warmup_steps": 0, "num_training_steps": 1000})``.
        schedule: a schedule on the same optimizer that takes the hyper-parameter along: one ``step()`` and one
            ``state_dict()`` for both. None: a schedule of its own, which leaves the learning rate alone.
        groups: the indices of the param groups; None for all.

    Returns:
        ``schedule``, or a new :class:`HyperparameterSchedule`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is no such number in the groups (the closest are listed), it is 0 in all of them, it follows a
            curve already, or the curve takes it out of its range: another sign, 1 or more for betas and momentum, or 0
            for momentum and beta1. What the curve does within its length, or the first 1000 steps, is seen at once.
    """
    if schedule is not None:
        if not isinstance(schedule, ScheduleLR | HyperparameterSchedule):
            raise TypeError(
                f"schedule must be a ScheduleLR or a HyperparameterSchedule, got {type(schedule).__name__}; leave it "
                "out for a schedule of its own, and do this before accelerator.prepare"
            )
        if schedule.optimizer is not optimizer:
            raise ValueError("schedule drives another optimizer than the one given; give the same object to both")
    new = Following(optimizer, name, described("curve", curve, 0, None), groups)
    if schedule is None:
        schedule = HyperparameterSchedule(optimizer)
    schedule.hyperparameters.add(new)
    schedule.hyperparameters.go_to(optimizer, schedule.last_epoch)
    return schedule


class ProportionScheduler:
    """``min_value + (max_value - min_value) * (lr - min_lr) / (max_lr - min_lr)``, lr that of the first param group.

    It reads the learning rate when it is made and at each ``step()``, to be called after that of the schedule. It keeps
    nothing that a checkpoint needs. To write such a value into an optimizer's groups, use
    :func:`schedules.schedule_hyperparameter` with the curve ``get_curve("proportion", ...)``.

    Args:
        lr_scheduler: the schedule, any of torch's or of this package.
        max_lr: the learning rate at ``max_value``.
        min_lr: the learning rate at ``min_value``, 0 or more, below ``max_lr``.
        max_value: the value at ``max_lr``.
        min_value: the value at ``min_lr``.

    Raises:
        TypeError: ``lr_scheduler`` has no optimizer, or an argument is not a number.
        ValueError: ``min_lr`` is not below ``max_lr``, or an argument is not finite.

    Source: Surrogate Gap Minimization (GSAM), https://arxiv.org/abs/2203.08065; signature of pytorch_optimizer.
    """

    def __init__(
        self,
        lr_scheduler: LRScheduler,
        max_lr: float,
        min_lr: float = 0.0,
        max_value: float = 2.0,
        min_value: float = 2.0,
    ) -> None:
        if not hasattr(getattr(lr_scheduler, "optimizer", None), "param_groups"):
            raise TypeError(f"lr_scheduler must drive an optimizer, got {type(lr_scheduler).__name__}")
        self.lr_scheduler = lr_scheduler
        self.max_lr = real_number("max_lr", max_lr, above=0)
        self.min_lr = real_number("min_lr", min_lr, at_least=0, below=self.max_lr)
        self.max_value = real_number("max_value", max_value)
        self.min_value = real_number("min_value", min_value)
        self.step_t = 0
        self.last_lr: list[float] = []
        self.step()

    def get_lr(self) -> float:
        """Return the value of the last ``step()``."""
        return self.last_lr[0]

    def step(self) -> float:
        """Return the value for the learning rate that the optimizer has now."""
        lr = float(self.lr_scheduler.optimizer.param_groups[0]["lr"])
        share = (lr - self.min_lr) / (self.max_lr - self.min_lr)
        value = self.min_value + (self.max_value - self.min_value) * share
        self.step_t += 1
        self.last_lr = [value]
        return value
