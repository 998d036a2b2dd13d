"""One advance per step of the optimizer, also where Accelerate drives a schedule.

Accelerate steps a prepared schedule as many times as there are processes at each step of the optimizer, so that the
learning rate depends on how many processes there are. Before each of these calls it asks a schedule that has
``total_steps``, as torch's OneCycleLR, whether there is a step left. Ours answer that there is one for each step of the
optimizer. Whoever calls ``step()`` without asking is not held back: that is torch's meaning of it.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch.optim import Optimizer

__all__ = ["StepsWithOptimizer"]

# Kept here and not in the objects: counts belong to a process, neither to a checkpoint nor to a copy.
_steps_taken: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
_advanced_at: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class StepsWithOptimizer:
    """A schedule that Accelerate advances once per step of the optimizer, whatever the number of processes."""

    optimizer: Any
    # Accelerate also adds to it for each micro-batch that it accumulates; torch's metric schedules have none.
    _step_count: int = 0

    @property
    def total_steps(self) -> int:
        """The count of calls up to which Accelerate may go on: one more than now, once the optimizer has stepped."""
        return self._step_count if self._has_a_step_left() else self._step_count - 1

    def _has_a_step_left(self) -> bool:
        optimizer = _counted(self.optimizer)
        if optimizer is None:
            return True
        if optimizer not in _steps_taken:
            _steps_taken[optimizer] = 0
            optimizer.register_step_post_hook(_count)
        return _advanced_at.get(self) != _steps_taken[optimizer]

    def _advanced(self) -> None:
        """To be called at the end of ``step()``."""
        optimizer = _counted(self.optimizer)
        if optimizer is not None and optimizer in _steps_taken:
            _advanced_at[self] = _steps_taken[optimizer]


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    _steps_taken[optimizer] += 1


def _counted(optimizer: Any) -> Any:
    """The optimizer whose steps count, inside wrappers such as Accelerate's and DeepSpeed's; None if none can."""
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    # LOMO's optimizers step in backward; nobody calls their step().
    countable = isinstance(optimizer, Optimizer) and not hasattr(optimizer, "fused_backward")
    return optimizer if countable else None
