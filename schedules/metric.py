"""The schedules that follow a metric instead of the step: reduce_lr_on_plateau, and plateau after timm.

:mod:`schedules.greedy` has the third.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, SupportsFloat

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from .checks import choice, is_list, number_list, plain, real_number, whole_number
from .curves import Constant, Noise
from .groups import (
    MARK,
    StepsWithOptimizer,
    check_groups,
    check_optimizer,
    check_saved_groups,
    copy_lrs,
    gives_back,
    marked,
    set_lr,
    set_lrs,
)
from .named.timm import noise_bounds, noisy
from .table import metric_schedule


class ReduceLROnPlateau(StepsWithOptimizer, TorchReduceLROnPlateau):
    """torch's ReduceLROnPlateau: lower the learning rate by a factor when a metric has stopped improving.

    Same arguments and numbers as torch's class. Two things are repaired: a tensor learning rate is filled in place
    (older torch replaces it by a float, and a compiled step recompiles: pytorch#163093), and ``load_state_dict`` puts
    the saved learning rates back into the optimizer (torch's leaves the ones it finds), where they are this schedule's
    to give: see :mod:`schedules.groups`.

    The other schedules that follow a metric are subclasses, with other ways to take one in, so that all that steps
    those with a metric (Trainer, Accelerate, Lightning) does the same with them.

    Args:
        optimizer: the optimizer to drive.
        *args: torch's arguments, see :class:`torch.optim.lr_scheduler.ReduceLROnPlateau`.
        **kwargs: the same by name: ``mode``, ``factor``, ``patience``, ``threshold``, ``threshold_mode``, ``cooldown``,
            ``min_lr``, ``eps``.
    """

    # What a saved state must hold.
    _NEEDED: tuple[str, ...] = ("best", "num_bad_epochs", "min_lrs", "mode_worse")

    def __init__(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        given = inspect.signature(TorchReduceLROnPlateau).bind(check_optimizer(optimizer), *args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        # Into the state dict go the numbers as Python has them.
        options["mode"] = choice("mode", options["mode"], ("min", "max"))
        options["threshold_mode"] = choice("threshold_mode", options["threshold_mode"], ("rel", "abs"))
        options["factor"] = real_number("factor", options["factor"], at_least=0, below=1)
        options.update({name: whole_number(name, options[name]) for name in ("patience", "cooldown")})
        options.update({name: real_number(name, options[name], at_least=0) for name in ("threshold", "eps")})
        lows = number_list("min_lr", options["min_lr"], len(optimizer.param_groups), at_least=0)
        # One number stays one: torch then takes it for groups that are added, too.
        options["min_lr"] = lows if is_list(options["min_lr"]) else lows[0]
        super().__init__(*given.args, **given.kwargs)
        self._last_lr = copy_lrs(optimizer)

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in one more value of the metric and change the learning rates if it is time.

        Args:
            metrics: the metric, a number or a 0-d tensor.
            epoch: number of this value; one more than the last if None. Deprecated by torch.
        """
        self._take(metrics, plain(epoch))
        self._last_lr = copy_lrs(self.optimizer)
        self._advanced()

    def _take(self, metrics: SupportsFloat, epoch: int | None) -> None:
        """Change what a value of the metric changes; the rest of a step is common to all."""
        before = [group["lr"] for group in self.optimizer.param_groups]
        super().step(metrics, epoch)
        for group, lr in zip(self.optimizer.param_groups, before, strict=True):
            if isinstance(lr, torch.Tensor) and group["lr"] is not lr:
                group["lr"] = lr.fill_(float(group["lr"]))

    def state_dict(self) -> dict[str, Any]:
        """Return settings, counters and learning rates, in the layout of torch, or for greedy of transformers."""
        return marked(self._state(), self)

    def _state(self) -> dict[str, Any]:
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, settings included, and put its learning rates back into the optimizer.

        Not if the optimizer's learning rates are somebody else's, see :meth:`ScheduleLR.load_state_dict`.

        Raises:
            ValueError: the state is not that of such a schedule or has another number of param groups. Nothing is
                changed then.
        """
        missing = set(self._NEEDED) - set(state_dict)
        if missing:
            raise ValueError(f"not the state of this kind of schedule: {', '.join(sorted(missing))} missing")
        # A group that came later is in the one from the next step on, in the other from the next reduction on.
        lrs = list(state_dict.get("_last_lr", ()))
        check_saved_groups(self.optimizer, len(lrs or state_dict["min_lrs"]), lrs)
        write = gives_back(state_dict, self)
        self._restore({key: value for key, value in state_dict.items() if key != MARK})
        if write:
            for group, lr in zip(self.optimizer.param_groups, lrs, strict=False):  # old states have none
                set_lr(group, lr)
            self._last_lr = copy_lrs(self.optimizer)

    def _restore(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)


class PlateauLR(ReduceLROnPlateau):
    """Warm up, then lower the learning rate by a factor whenever a metric has stopped improving; noise if wanted.

    Evaluations are counted from 1. Up to number ``warmup_epochs``, W, the metric does not count: the lr is
    ``w + (lr - w) * n / W``, w = ``warmup_lr``, 0 being the training before the first. From then on it is that of
    :class:`ReduceLROnPlateau`, which knows of no noise, times ``1 + noise``.

    The state dict holds everything: metric, counters, learning rates with and without noise. timm's holds the best
    metric and a counter alone, so that a resumed run there waits anew.

    Args:
        optimizer: the optimizer to drive.
        mode: ``min`` if a smaller metric is better, ``max`` if a larger one is.
        factor: what the lr is multiplied by, 0 or more and below 1.
        patience: evaluations in a row without improvement that are let pass.
        threshold: how much better than the best a metric must be to count, 0 or more.
        threshold_mode: ``rel`` takes the threshold as a share of the best, ``abs`` adds it.
        cooldown: evaluations after a reduction that do not count as bad.
        min_lr: lower bound without noise, one for all groups or one for each.
        eps: a change not larger than this is left out.
        warmup_epochs: W, evaluations, 0 or more.
        warmup_lr: w, an absolute learning rate, one for all groups or one for each.
        noise_range: None for no noise, the first evaluation with it, or ``[first, stop]``.
        noise_pct: bound of the noise, above 0.
        noise_std: standard deviation of the noise, which is normal, and drawn again where it is outside the bound.
        noise_seed: seed of the noise; evaluation n has its own, ``noise_seed + n``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: timm 1.0.31, ``PlateauLRScheduler``.
    """

    _NEEDED = (*ReduceLROnPlateau._NEEDED, "plain_lrs", "full_lrs", "warmup_lrs", "warmup_epochs", "noise")

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0.0,
        eps: float = 1e-8,
        warmup_epochs: int = 0,
        warmup_lr: float | list[float] = 0.0,
        noise_range: float | Sequence[float] | None = None,
        noise_pct: float = 0.67,
        noise_std: float = 1.0,
        noise_seed: int = 42,
    ) -> None:
        super().__init__(optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)
        self.warmup_epochs = whole_number("warmup_epochs", warmup_epochs)
        self.warmup_lrs = number_list("warmup_lr", warmup_lr, len(optimizer.param_groups), at_least=0)
        self.noise = None if noise_range is None else _noise(noise_range, noise_pct, noise_std, noise_seed)
        self.full_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.plain_lrs = list(self.full_lrs)
        if self.warmup_epochs:
            self.at(0)

    def _take(self, metrics: SupportsFloat, epoch: int | None) -> None:
        self.at(self.last_epoch + 1 if epoch is None else epoch, metrics)

    def at(self, epoch: int, metric: SupportsFloat | None = None) -> None:
        """Set the learning rates that follow evaluation ``epoch``.

        Args:
            epoch: number of the evaluation, 1 or more; 0 is before the first.
            metric: its metric; None: there was none, and nothing but warm-up and noise changes.
        """
        epoch = whole_number("epoch", epoch)
        check_groups(self.optimizer, len(self.full_lrs))
        if epoch <= self.warmup_epochs:
            done = epoch / self.warmup_epochs if self.warmup_epochs else 1.0
            ends = zip(self.warmup_lrs, self.full_lrs, strict=True)
            # A group with lr 0 is frozen: the warm-up does not wake it.
            set_lrs(self.optimizer, [low + (full - low) * done if full else 0.0 for low, full in ends])
            self.plain_lrs = self._lrs()
        else:
            set_lrs(self.optimizer, self.plain_lrs)
            if metric is not None:
                self.last_epoch = epoch - 1
                super()._take(metric, None)
                self.plain_lrs = self._lrs()
            if self.noise is not None:
                factor = Noise(Constant(), **self.noise).value(epoch)
                set_lrs(self.optimizer, [lr * factor for lr in self.plain_lrs])
        self.last_epoch = epoch
        self._last_lr = copy_lrs(self.optimizer)

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


def _noise(noise_range: float | Sequence[float], pct: float, std: float, seed: int) -> dict[str, Any]:
    bounds = noise_bounds("noise_range", noise_range)
    start, stop = bounds[0], bounds[1] if bounds[1:] else None
    curve = noisy(Constant(), start, stop, pct, std, seed)  # which checks them
    return {name: getattr(curve, name) for name in ("start", "stop", "limit", "std", "seed")}


@metric_schedule("reduce_lr_on_plateau", "multiplied by a factor when a metric stops improving", TorchReduceLROnPlateau)
def get_reduce_on_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> ReduceLROnPlateau:
    """Keep the learning rate until a metric stops improving, then multiply it by ``factor``."""
    return ReduceLROnPlateau(optimizer, **kwargs)


@metric_schedule(
    "plateau", "warm-up, multiplied by a factor when a metric stops improving, with noise if wanted", PlateauLR
)
def get_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> PlateauLR:
    """Warm up, then multiply the learning rate by ``factor`` whenever a metric has stopped improving.

    Noise can be added to it.
    """
    return PlateauLR(optimizer, **kwargs)
