"""The torch scheduler that drives an optimizer's learning rates by a curve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .changes import with_changes, written
from .checks import choice, plain, real_number, whole_number
from .curves import Curve, bind_group
from .following import Followers
from .groups import (
    MARK,
    StepsWithOptimizer,
    check_groups,
    check_optimizer,
    check_saved_groups,
    copy_lrs,
    gives_back,
    in_force,
    marked,
    plain_lr,
    set_lr,
    set_lrs,
)
from .shapes import DECAYS

# Newer torch's `step()` does its work in `_update_lr()`, which SequentialLR calls by itself at a milestone.
STEP_UPDATES = hasattr(LRScheduler, "_update_lr")


class FollowsCurves(StepsWithOptimizer, LRScheduler):
    """A torch scheduler that takes hyper-parameters along curves at every advance."""

    hyperparameters: Followers

    def step(self, epoch: int | None = None) -> None:
        """Put the values of the next step into the optimizer, the learning rates among them if they are scheduled.

        Args:
            epoch: deprecated by torch; the step to go to.
        """
        self._check()
        super().step(plain(epoch))
        if not STEP_UPDATES:
            self._followed()

    def _update_lr(self, epoch: int | None = None) -> None:
        self._check()
        super()._update_lr(epoch)
        self._followed()

    def _check(self) -> None:
        """Raise, before anything changes, if there can be no advance."""

    def _followed(self) -> None:
        """What belongs to an advance beside the learning rates."""
        self.hyperparameters.go_to(self.optimizer, self.last_epoch)
        self._advanced()


class ScheduleLR(FollowsCurves, LambdaLR):
    """Learning rates by a curve: each group's lr at step t is its initial lr times ``curve(t)``.

    A torch LambdaLR, with three differences. Each group gets its own form of the curve where that depends on the
    group's initial lr (an absolute floor). ``state_dict`` holds the position and the base learning rates only, in
    LambdaLR's layout: the curve itself comes from the code, as with transformers, whose state dicts load here.
    ``load_state_dict`` also puts the saved learning rates back into the optimizer, where they are this schedule's to
    give: see :mod:`schedules.groups`.

    It may be a member of torch's SequentialLR and ChainedScheduler, whatever the other members are.

    Other hyper-parameters may follow curves of their own beside the learning rate, see
    :func:`schedules.schedule_hyperparameter`; ``hyperparameters.at(step)`` gives their values.

    Args:
        optimizer: the optimizer to drive. A group's lr may be a float or a 0-d tensor; a tensor is filled in place.
        curve: the multiplier as a function of the step.
        last_epoch: the last step done; -1 for a new run. Otherwise every group must have its ``initial_lr``.

    Raises:
        TypeError: ``optimizer`` is not an optimizer or ``curve`` is not a curve.
        ValueError: a group's initial lr is missing or below the floor of the curve.
        KeyError: ``last_epoch`` is given, and a group has no ``initial_lr``.
    """

    def __init__(self, optimizer: Optimizer, curve: Curve, last_epoch: int = -1) -> None:
        if not isinstance(curve, Curve):
            raise TypeError(f"curve must be a schedules.curves.Curve, got {curve!r}")
        check_optimizer(optimizer)
        last_epoch = whole_number("last_epoch", last_epoch, at_least=-1)
        for group in optimizer.param_groups:
            # Products of NumPy's numbers are such numbers again, and get into every state dict from here on.
            group.update({key: plain_lr(group[key]) for key in ("lr", "initial_lr") if key in group})
        self.optimizer = optimizer
        self.curve = curve
        self.changes: list[dict[str, Any]] = []
        self.hyperparameters = Followers()
        initial = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        super().__init__(optimizer, self._bind(curve, initial), last_epoch)
        # Older torch keeps the very tensors of the groups, which a SequentialLR then fills.
        self.base_lrs = [lr.clone() if isinstance(lr, torch.Tensor) else lr for lr in self.base_lrs]

    def _check(self) -> None:
        check_groups(self.optimizer, len(self.base_lrs), "; take_on() lets new groups follow this one")

    def _followed(self) -> None:
        if not STEP_UPDATES:
            self._last_lr = copy_lrs(self.optimizer)  # there they are the groups' own tensors
        super()._followed()

    def _bind(self, curve: Curve, initial_lrs: list[Any]) -> list[Callable[[int], float]]:
        """A curve in the form that each param group has of it."""
        return [bind_group(curve, index, float(lr)) for index, lr in enumerate(initial_lrs)]

    def lr_at(self, step: int) -> list[float]:
        """Return the learning rate of every group at ``step``, whatever the current step is."""
        return _lrs_at(step, self.base_lrs, self.lr_lambdas)

    def go_to(self, step: int) -> None:
        """Put the learning rates of ``step``, 0 or more, into the optimizer; :meth:`step` goes on from there."""
        step = whole_number("step", step)
        check_groups(self.optimizer, len(self.base_lrs))
        self.last_epoch = step
        set_lrs(self.optimizer, self.lr_at(step))
        self._last_lr = copy_lrs(self.optimizer)
        self.hyperparameters.go_to(self.optimizer, self.last_epoch)

    def take_on(self) -> None:
        """Let the groups that were added to the optimizer since follow the curve, too, from the current step on.

        As with the groups before them, the ``initial_lr`` of such a group, else its ``lr``, is what the curve
        multiplies; the optimizer has the product at once. Nothing changes where no group was added. What else follows
        curves (:func:`schedules.schedule_hyperparameter`) does so in the groups that it was asked for. The
        ``state_dict`` knows the new groups: a resumed run adds them and takes them on before it loads.

        Raises:
            ValueError: the optimizer has fewer groups than before, or a new one has no lr or one below the floor of the
                curve. Nothing is changed then.
        """
        known, groups = len(self.base_lrs), self.optimizer.param_groups
        if len(groups) < known:
            check_groups(self.optimizer, known)
        check_optimizer(self.optimizer)
        new = [plain_lr(group.get("initial_lr", group["lr"])) for group in groups[known:]]
        base_lrs = [*self.base_lrs, *(lr.clone() if isinstance(lr, torch.Tensor) else lr for lr in new)]
        bound = self._bind(with_changes(self.curve, self.changes), base_lrs)
        now = _lrs_at(max(0, self.last_epoch), base_lrs[known:], bound[known:])
        for group, initial, lr in zip(groups[known:], base_lrs[known:], now, strict=True):
            group["initial_lr"], group["lr"] = initial, plain_lr(group["lr"])
            set_lr(group, lr)
        self.base_lrs, self.lr_lambdas = base_lrs, bound
        self._last_lr = [*self.get_last_lr(), *copy_lrs(self.optimizer)[known:]]

    def anneal(self, num_steps: int, shape: str = "1-sqrt", to: float = 0.0) -> None:
        """Leave the curve at the current step and fall to ``to`` times the current lr in ``num_steps`` steps.

        ``lr(t) = lr(s) * (to + (1 - to) * f((t - s) / num_steps))``, s the current step. After that the lr stays. The
        ``state_dict`` remembers it, so a resumed run goes on. Asked for again, the fall starts from where it is.

        Args:
            num_steps: steps of the fall, 1 or more.
            shape: f, ``linear``, ``cosine``, ``1-sqrt``, ``1-square`` or ``exponential``, as the decays of
                :func:`schedules.get_wsd_schedule`.
            to: the end as a share of each group's current lr, from 0 to 1.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range.
        """
        self._change(
            "anneal",
            num_steps=whole_number("num_steps", num_steps, at_least=1),
            shape=choice("shape", shape, DECAYS),
            to=real_number("to", to, at_least=0, at_most=1),
        )

    def replace(self, curve: Curve, *, restart: bool = False) -> None:
        """Follow another curve from the current step on.

        The optimizer has the learning rate of the new curve at once, if it has this schedule's. The ``state_dict``
        holds the new curve, so a resumed run goes on with it, whatever the code says.

            >>> schedule.replace(get_curve("cosine", 100, 2000))  # doctest: +SKIP

        Args:
            curve: the new curve, of the initial learning rates as the one before: :func:`schedules.get_curve` gives
                that of a name. It cannot hold a function, as it is saved.
            restart: let it count from 0 here. By default it is taken as one that has counted from the beginning.

        Raises:
            TypeError: it is no curve, or one that cannot be saved.
            ValueError: a group's initial lr is below the floor of the curve.
        """
        if not isinstance(curve, Curve):
            raise TypeError(f"curve must be a schedules.curves.Curve, such as get_curve(name, ...), got {curve!r}")
        if not isinstance(restart, bool):
            raise TypeError(f"restart must be True or False, got {restart!r}")
        self._change("replace", following=written(curve), restart=restart)

    def extend(self, total: int) -> None:
        """Let the schedule end at step ``total``: what is left of it is stretched, or squeezed, from here to there.

        The learning rate goes on from where it is, without a jump: ``curve(s + (T - s) (t - s) / (total - s))`` at step
        t, s the current step, T the end of the curve before. The ``state_dict`` remembers it.

        To have the curve of a longer run as if it had been so from the beginning, replace it by that.

        Args:
            total: the step that has the end value, after the current one.

        Raises:
            TypeError: it is no number of steps.
            ValueError: it is not after the current step, or the schedule has no end or is at its end already.
        """
        self._change("extend", total=whole_number("total", total))

    def _change(self, kind: str, **asked: Any) -> None:
        """Change the curve from the current step on."""
        changes = [*self.changes, {"kind": kind, "start": max(0, self.last_epoch), **asked}]
        bound = self._bind(with_changes(self.curve, changes), self.base_lrs)
        now = _lrs_at(max(0, self.last_epoch), self.base_lrs, bound)
        self.lr_lambdas, self.changes = bound, changes
        if self.last_epoch >= 0 and in_force(self):
            set_lrs(self.optimizer, now)
            self._last_lr = copy_lrs(self.optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the base learning rates, in the layout of torch's LambdaLR over plain functions.

        It holds numbers, lists and, with tensor learning rates, tensors: ``torch.load(weights_only=True)`` reads it.
        """
        own = ("optimizer", "curve", "changes", "lr_lambdas", "hyperparameters")
        state = {key: value for key, value in self.__dict__.items() if key not in own}
        state["lr_lambdas"] = [None] * len(self.lr_lambdas)
        if self.changes:
            state["changes"] = [dict(each) for each in self.changes]
        if self.hyperparameters.all:
            state["hyperparameters"] = self.hyperparameters.state(self.optimizer)
        return marked(state, self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, and put its learning rates back into the optimizer.

        Not if they were not the optimizer's when the state was saved, as with a member of a SequentialLR whose turn is
        over or yet to come (position -1); nor if the optimizer's have been set by somebody else since, such as its own
        ``load_state_dict``.

        Args:
            state_dict: what :meth:`state_dict` or that of any LambdaLR schedule of transformers returned.

        Raises:
            ValueError: the state is not that of a LambdaLR schedule, has another number of param groups, or curves for
                other hyper-parameters. Nothing is changed then.
        """
        missing = {"base_lrs", "last_epoch", "lr_lambdas"} - set(state_dict)
        if missing:
            raise ValueError(f"not the state of a LambdaLR schedule: {', '.join(sorted(missing))} missing")
        groups = self.optimizer.param_groups
        check_saved_groups(self.optimizer, len(state_dict["base_lrs"]), state_dict["base_lrs"])
        base_lrs = [_like(group["lr"], lr) for group, lr in zip(groups, state_dict["base_lrs"], strict=True)]
        changes = [dict(each) for each in state_dict.get("changes", ())]
        bound = self._bind(with_changes(self.curve, changes), base_lrs)
        hyperparameters = self.hyperparameters.check_state(state_dict.get("hyperparameters"))
        lrs = state_dict.get("_last_lr")
        if lrs is None:
            step = state_dict["last_epoch"]
            lrs = copy_lrs(self.optimizer) if step < 0 else _lrs_at(step, base_lrs, bound)
        if len(lrs) != len(groups):
            raise ValueError(f"the state has {len(lrs)} last learning rates for {len(groups)} param groups")
        lrs = [_like(group["lr"], lr) for group, lr in zip(groups, lrs, strict=True)]

        write = gives_back(state_dict, self)
        own = ("optimizer", "curve", "changes", "lr_lambdas", "base_lrs", "_last_lr", "hyperparameters", MARK)
        self.__dict__.update({key: value for key, value in state_dict.items() if key not in own})
        self.base_lrs = base_lrs
        self.changes = changes
        self.lr_lambdas = bound
        self._last_lr = lrs
        if write:
            set_lrs(self.optimizer, lrs)
        self.hyperparameters.load(self.optimizer, hyperparameters, self.last_epoch)


def _lrs_at(step: int, base_lrs: list[Any], curves: list[Callable[[int], float]]) -> list[float]:
    return [float(base) * curve(step) for base, curve in zip(base_lrs, curves, strict=True)]


def _like(current: Any, lr: Any) -> Any:
    """``lr`` in the kind (float or tensor) of ``current``, so that a checkpoint does not change a group's kind."""
    return torch.full_like(current, float(lr)) if isinstance(current, torch.Tensor) else float(lr)
