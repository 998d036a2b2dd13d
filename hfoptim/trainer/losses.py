"""The loss in a Trainer, for optimizers whose step depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all
from hfoptim.trainer import private, second_pass
from hfoptim.wrappers import SAM, SVRG


class TellLoss(TrainerCallback):
    """Tells optimizers of hfoptim the loss of each step, for those whose step depends on it; others make no use of it.

        Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[TellLoss()])

    An optimizer that was chosen by name, or by `OptimizerCallback`, is told without it. Under gradient accumulation the
    losses of the micro-batches are added up as their gradients are.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        private.intercept(private.trainer_in_charge(), "training_step", _telling)


def attend(trainer: Any, optimizer: Any) -> None:
    """Have an optimizer told the loss in a trainer that is about to train, if its step depends on it."""
    if any(inner.needs_loss for inner in unwrap_all(optimizer, RuleOptimizer)):
        private.intercept(trainer, "training_step", _telling)


def _telling(trainer: Any, step: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """`training_step`: what it returns is the loss as `backward` was called on it, without a scale of float16."""
    loss = step(*args, **kwargs)
    for inner in _told(trainer):
        inner.add_loss(loss)
    return loss


def _told(trainer: Any) -> list[RuleOptimizer]:
    """Those that are to be told.

    A second pass of SAM tells the one inside of it the loss at the worst point nearby. That of the step is the first
    pass's with SVRG, whatever the snapshot's.
    """
    sam, svrg = unwrap(trainer.optimizer, SAM), unwrap(trainer.optimizer, SVRG)
    if (sam is not None and sam.second_is_due) or (svrg is not None and second_pass.happens_in(trainer)):
        return []
    return unwrap_all(trainer.optimizer, RuleOptimizer)
