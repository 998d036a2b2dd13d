"""Checkpoints of optimizers that divide their matrices among the processes (`distribute_matrices`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.trainer import private


def attend(trainer: Any, optimizer: Any) -> None:
    """See that a checkpoint has the state of all processes: a Trainer asks the first of them alone for it.

    Args:
        trainer: the trainer, about to train.
        optimizer: its optimizer, wrapped or not.
    """
    divided = (group["distribute_matrices"] for o in unwrap_all(optimizer, RuleOptimizer) for group in o.param_groups)
    if any(divided):
        private.intercept(trainer, "_save_optimizer_and_scheduler", _gathering)


def _gathering(trainer: Any, save: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Save, with the state of all processes at hand."""
    with ExitStack() as gathered:
        for optimizer in unwrap_all(trainer.optimizer, RuleOptimizer):
            gathered.enter_context(optimizer.gathered_state())
        return save(*args, **kwargs)
