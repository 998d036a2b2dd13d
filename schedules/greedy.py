"""greedy: a learning rate that follows a metric up and down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

from torch.optim import Optimizer

from .checks import number_list, real_number, warn, whole_number
from .groups import copy_lrs, set_lr, set_lrs
from .metric import ReduceLROnPlateau
from .table import metric_schedule


class GreedyLR(ReduceLROnPlateau):
    """Raise the learning rate while a metric keeps improving, lower it while it does not.

    After more than ``patience`` improvements in a row: ``lr = min(lr / factor, max_lr)``; after more than ``patience``
    values in a row without one: ``lr = max(lr * factor, min_lr)``. Once every group sits at ``min_lr``, each further
    reduction counts down ``reset_start``; at 0 everything starts anew from the initial learning rates.

    It is a ReduceLROnPlateau to whoever asks, so that all that steps those with a metric (Trainer, Accelerate,
    Lightning) does the same here. Same numbers and state dict as transformers' GreedyLR.

    Args:
        optimizer: the optimizer to drive.
        mode: ``min`` if a smaller metric is better, ``max`` if a larger one is.
        factor: between 0 and 1.
        patience: how many improvements, or values without one, are let pass before the lr changes.
        threshold: how much better than the best a value must be to count.
        threshold_mode: ``abs`` adds the threshold to the best, ``rel`` takes it as a share of the best.
        cooldown: values to ignore after a reduction.
        warmup: values to ignore after an increase.
        min_lr: lower bound, one for all groups or one for each. The default of 1e-3 is above the usual learning rates
            of transformers: a group that starts below its bound is never lowered (a warning says so).
        max_lr: upper bound, one for all groups or one for each.
        eps: a change not larger than this is left out.
        verbose: print each change.
        smooth: compare the mean of the last ``window_size`` values instead of the last one.
        window_size: length of that window.
        reset_start: reductions at ``min_lr`` until the reset.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Source: https://arxiv.org/abs/2512.14527.
    """

    _RULE = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "warmup", "eps", "smooth")
    _MORE = ("verbose", "window_size", "reset_start", "reset_start_original")
    _COUNTERS = ("cooldown_counter", "warmup_counter", "best", "num_bad_epochs", "num_good_epochs", "last_epoch")
    _NUMBERS = (*_RULE, *_MORE, *_COUNTERS)
    _LISTS = ("min_lrs", "max_lrs", "_init_lrs", "_last_lr")
    _NEEDED = (*_NUMBERS, *_LISTS)

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.95,
        patience: int = 10,
        threshold: float = 1e-6,
        threshold_mode: str = "abs",
        cooldown: int = 0,
        warmup: int = 0,
        min_lr: float | list[float] = 1e-3,
        max_lr: float | list[float] = 1.0,
        eps: float = 1e-8,
        verbose: bool = False,
        smooth: bool = False,
        window_size: int = 50,
        reset_start: int = 500,
    ) -> None:
        real_number("factor", factor, above=0, below=1)
        super().__init__(optimizer, mode, factor, patience, threshold, threshold_mode, cooldown, min_lr, eps)
        self.max_lrs = number_list("max_lr", max_lr, len(self.min_lrs), at_least=0)
        self.warmup = whole_number("warmup", warmup)
        self.verbose = verbose
        self.smooth = smooth
        self.window_size = whole_number("window_size", window_size, at_least=1)
        self.reset_start = self.reset_start_original = whole_number("reset_start", reset_start, at_least=1)
        self.warmup_counter = 0
        self.num_good_epochs = 0
        self._window = _Window()
        self._init_lrs = copy_lrs(optimizer)
        for index, (lr, low, high) in enumerate(zip(self._init_lrs, self.min_lrs, self.max_lrs, strict=True)):
            if low > high:
                raise ValueError(f"param group {index}: min_lr={low!r} is above max_lr={high!r}")
            if lr < low:
                warn(
                    f"param group {index} starts at lr={float(lr):g}, below min_lr={low:g}: greedy never lowers it; "
                    "pass a min_lr below the initial lr"
                )

    def _take(self, metrics: SupportsFloat, epoch: int | None) -> None:
        current = float(metrics)
        if self.smooth:
            current = self._window.mean_with(current, self.window_size)
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch

        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = self.num_good_epochs = 0
        elif self.warmup_counter > 0:
            self.warmup_counter -= 1
            self.num_bad_epochs = self.num_good_epochs = 0
        elif self.is_better(current, self.best):
            self.best = current
            self.num_bad_epochs = 0
            self.num_good_epochs += 1
            if self.num_good_epochs > self.patience:
                self._raise()
                self.warmup_counter = self.warmup
                self.num_good_epochs = 0
        else:
            self.num_good_epochs = 0
            self.num_bad_epochs += 1
            if self.num_bad_epochs > self.patience:
                self._lower()
                # A reset inside _lower does not spare the cooldown: so it is in transformers.
                self.cooldown_counter = self.cooldown
                self.num_bad_epochs = 0

    def is_better(self, current: float, best: float) -> bool:
        """Say whether ``current`` beats ``best`` by more than the threshold."""
        sign = -1.0 if self.mode == "min" else 1.0
        margin: float = sign * self.threshold
        bar = best * (1.0 + margin) if self.threshold_mode == "rel" else best + margin
        return current < bar if self.mode == "min" else current > bar

    def _lower(self) -> None:
        groups = self.optimizer.param_groups
        for index, group in enumerate(groups):
            old = float(group["lr"])
            new = max(old * self.factor, self.min_lrs[index])
            if old - new > self.eps:
                self._change(index, new)
        if not any(bool(group["lr"] > low) for group, low in zip(groups, self.min_lrs, strict=True)):
            self.reset_start -= 1
            if self.reset_start <= 0:
                self._start_anew()

    def _raise(self) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            old = float(group["lr"])
            new = min(old / self.factor, self.max_lrs[index])
            if new - old > self.eps:
                self._change(index, new)
        self.reset_start = self.reset_start_original

    def _change(self, index: int, lr: float) -> None:
        set_lr(self.optimizer.param_groups[index], lr)
        if self.verbose:
            print(f"GreedyLR, value {self.last_epoch}: learning rate of group {index} set to {lr:.4e}")

    def _start_anew(self) -> None:
        set_lrs(self.optimizer, self._init_lrs)
        self.best = math.inf if self.mode == "min" else -math.inf
        self.num_bad_epochs = self.num_good_epochs = 0
        self.cooldown_counter = self.warmup_counter = 0
        self.reset_start = self.reset_start_original
        self._window = _Window()
        if self.verbose:
            print(f"GreedyLR, value {self.last_epoch}: back to the initial learning rates")

    def _state(self) -> dict[str, Any]:
        state = {name: getattr(self, name) for name in self._NUMBERS}
        state.update({name: list(getattr(self, name)) for name in self._LISTS})
        if self.smooth:
            values, total = list(self._window.values), self._window.total
            state["_streaming_avg"] = {"window_size": self.window_size, "values": values, "sum": total}
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        for name in self._NUMBERS:
            setattr(self, name, state[name])
        for name in self._LISTS:
            setattr(self, name, list(state[name]))
        saved = state.get("_streaming_avg")
        self._window = _Window(saved["values"], saved["sum"]) if saved else _Window()


class _Window:
    """The last values of a metric and their running sum."""

    def __init__(self, values: Sequence[float] = (), total: float = 0.0) -> None:
        self.values = list(values)
        self.total = total

    def mean_with(self, value: float, size: int) -> float:
        """Add ``value``, drop what is older than ``size`` values, return the mean."""
        self.values.append(value)
        self.total += value
        if len(self.values) > size:
            gone = self.values.pop(0)
            # NaN - NaN is NaN: without this one bad value would stay in the sum for ever.
            self.total = self.total - gone if math.isfinite(gone) else sum(self.values)
        return self.total / len(self.values)


@metric_schedule("greedy", "raised while a metric improves, lowered while it does not", GreedyLR)
def get_greedy_schedule(optimizer: Optimizer, **kwargs: Any) -> GreedyLR:
    """Raise the learning rate while a metric improves, lower it while it does not."""
    return GreedyLR(optimizer, **kwargs)
