"""reduce_lr_on_plateau, and what the schedules that follow a metric instead of the step have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, SupportsFloat

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from .checks import choice, closest, is_list, number_list, plain, real_number, whole_number
from .counting import StepsWithOptimizer
from .in_force import MARK, copy_lrs, gives_back, marked, set_lr
from .scheduler import check_optimizer, check_saved_groups

__all__ = ["ReduceLROnPlateau", "accepted_options", "check_options", "get_reduce_on_plateau_schedule", "saved_lrs"]


class ReduceLROnPlateau(StepsWithOptimizer, TorchReduceLROnPlateau):
    """torch's ReduceLROnPlateau: lower the learning rate by a factor when a metric has stopped improving.

    Same arguments and numbers as torch's class. Two things are repaired: a tensor learning rate is filled in place
    (older torch replaces it by a float, and a compiled step recompiles: pytorch#163093), and ``load_state_dict`` puts
    the saved learning rates back into the optimizer (torch's leaves the ones it finds), where they are this schedule's
    to give: see :mod:`schedules.in_force`.

    Args:
        optimizer: the optimizer to drive.
        *args: torch's arguments, see :class:`torch.optim.lr_scheduler.ReduceLROnPlateau`.
        **kwargs: the same by name: ``mode``, ``factor``, ``patience``, ``threshold``, ``threshold_mode``, ``cooldown``,
            ``min_lr``, ``eps``.
    """

    def __init__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(TorchReduceLROnPlateau).bind(check_optimizer(optimizer), *args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        # Into the state dict go the numbers as Python has them.
        options["mode"] = choice("mode", options["mode"], ("min", "max"))
        options["threshold_mode"] = choice("threshold_mode", options["threshold_mode"], ("rel", "abs"))
        options["factor"] = real_number("factor", options["factor"], at_least=0, below=1)
        options["patience"] = whole_number("patience", options["patience"])
        options["cooldown"] = whole_number("cooldown", options["cooldown"])
        options["threshold"] = real_number("threshold", options["threshold"], at_least=0)
        options["eps"] = real_number("eps", options["eps"], at_least=0)
        lows = number_list("min_lr", options["min_lr"], len(optimizer.param_groups), at_least=0)
        # One number stays one: torch then takes it for groups that are added, too.
        options["min_lr"] = lows if is_list(options["min_lr"]) else lows[0]
        super().__init__(*given.args, **given.kwargs)
        self._last_lr = copy_lrs(optimizer)

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in one more value of the metric.

        Args:
            metrics: the metric, a number or a 0-d tensor.
            epoch: deprecated by torch; the count of calls if None.
        """
        before = [group["lr"] for group in self.optimizer.param_groups]
        super().step(metrics, plain(epoch))
        for group, lr in zip(self.optimizer.param_groups, before, strict=True):
            if isinstance(lr, torch.Tensor) and group["lr"] is not lr:
                group["lr"] = lr.fill_(float(group["lr"]))
        self._last_lr = copy_lrs(self.optimizer)
        self._advanced()

    def state_dict(self) -> dict[str, Any]:
        """Return settings, counters and learning rates, in torch's layout."""
        return marked(super().state_dict(), self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, and put its learning rates back into the optimizer.

        Not if the optimizer's learning rates are somebody else's, see :meth:`ScheduleLR.load_state_dict`.

        Raises:
            ValueError: the state is not that of a ReduceLROnPlateau or has another number of param groups. Nothing is
                changed then.
        """
        lrs = saved_lrs(state_dict, {"best", "num_bad_epochs", "min_lrs", "mode_worse"}, self.optimizer)
        write = gives_back(state_dict, self)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != MARK})
        if write:
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=False):  # old states have none
                set_lr(group, lr)
            self._last_lr = copy_lrs(self.optimizer)


def saved_lrs(state: dict[str, Any], needed: set[str], optimizer: Optimizer) -> list[Any]:
    missing = needed - set(state)
    if missing:
        raise ValueError(f"not the state of this kind of schedule: {', '.join(sorted(missing))} missing")
    # A group that came later is in the one from the next step on, in the other from the next reduction on.
    lrs = list(state.get("_last_lr", ()))
    check_saved_groups(optimizer, len(lrs or state["min_lrs"]), lrs)
    return lrs


def accepted_options(schedule: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a metric schedule's class other than the optimizer, by name."""
    parameters = inspect.signature(schedule).parameters.values()
    return {each.name: each for each in parameters if each.name not in ("self", "optimizer")}


def check_options(schedule: str, kwargs: dict[str, Any], accepted: dict[str, inspect.Parameter]) -> None:
    for name in kwargs:
        if name not in accepted:
            raise TypeError(
                f"{schedule} takes no option {name!r}; {closest(name, accepted)}; it takes {', '.join(accepted)}"
            )


def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """Keep the learning rate until a metric stops improving, then multiply it by ``factor``.

    Step it with the metric: ``schedule.step(eval_loss)``.

    Args:
        optimizer: the optimizer to drive.
        **kwargs: options of :class:`torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option is out of range.
    """
    check_options("reduce_lr_on_plateau", kwargs, accepted_options(TorchReduceLROnPlateau))
    return ReduceLROnPlateau(optimizer, **kwargs)
