"""plateau: reduce_lr_on_plateau with a warm-up before and noise on top, after timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

from torch.optim import Optimizer

from .checks import number_list, whole_number
from .curves import Constant, Noise
from .in_force import copy_lrs, set_lrs
from .named.timm import noise_bounds, noisy
from .plateau import ReduceLROnPlateau, accepted_options, check_options, saved_lrs
from .scheduler import check_groups

__all__ = ["PlateauLR", "get_plateau_schedule"]


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

    _OWN = ("plain_lrs", "full_lrs", "warmup_lrs", "warmup_epochs", "noise")

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

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in one more value of the metric.

        Args:
            metrics: the metric, a number or a 0-d tensor.
            epoch: number of this evaluation; one more than the last if None.
        """
        self.at(self.last_epoch + 1 if epoch is None else epoch, metrics)
        self._advanced()

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
                super().step(metric)
                self.plain_lrs = self._lrs()
            if self.noise is not None:
                factor = Noise(Constant(), **self.noise).value(epoch)
                set_lrs(self.optimizer, [lr * factor for lr in self.plain_lrs])
        self.last_epoch = epoch
        self._last_lr = copy_lrs(self.optimizer)

    def _lrs(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, settings included, and put its learning rates back into the optimizer.

        Raises:
            ValueError: the state is not that of a PlateauLR or has another number of param groups. Nothing is changed
                then.
        """
        saved_lrs(state_dict, {"min_lrs", *self._OWN}, self.optimizer)
        super().load_state_dict(state_dict)


def _noise(noise_range: float | Sequence[float], pct: float, std: float, seed: int) -> dict[str, Any]:
    bounds = noise_bounds("noise_range", noise_range)
    start, stop = bounds[0], bounds[1] if bounds[1:] else None
    curve = noisy(Constant(), start, stop, pct, std, seed)  # which checks them
    return {name: getattr(curve, name) for name in ("start", "stop", "limit", "std", "seed")}


def get_plateau_schedule(optimizer: Optimizer, **kwargs: Any) -> PlateauLR:
    """Warm up, then multiply the learning rate by ``factor`` whenever a metric has stopped improving; noise if wanted.

    Step it with the metric: ``schedule.step(eval_loss)``.

    Args:
        optimizer: the optimizer to drive.
        **kwargs: options of :class:`PlateauLR`.

    Raises:
        TypeError: an option is unknown.
        ValueError: an option is out of range.
    """
    check_options("plateau", kwargs, accepted_options(PlateauLR))
    return PlateauLR(optimizer, **kwargs)
