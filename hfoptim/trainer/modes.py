"""Optimizers with a training and an evaluation mode, such as schedule-free ones: the right weights are saved."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, unwrap

logger = logging.getLogger(__name__)


class EvaluationWeights(TrainerCallback):
    """Puts the evaluation weights into the model before the Trainer saves it, and at the end of every epoch.

    transformers asks for them before evaluations only, and for the training weights before every step (4.57 and 5.x).
    The end of the last epoch is also the end of the training, before the best model is loaded.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if control.should_save:
            unwrap(optimizer, RuleOptimizer).eval()

    def on_epoch_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        unwrap(optimizer, RuleOptimizer).eval()


def attend(trainer: Any, optimizer: Any, schedule: str) -> None:
    """See to what an optimizer of ours asks of its Trainer: the right weights saved, and a constant learning rate.

    Args:
        trainer: the trainer, about to make its schedule; gets a callback if the optimizer has two modes.
        optimizer: its optimizer, wrapped or not.
        schedule: name of the schedule that it makes unless it was given one.
    """
    inner = unwrap(optimizer, RuleOptimizer)
    present = any(isinstance(callback, EvaluationWeights) for callback in trainer.callback_handler.callbacks)
    if present or not callable(getattr(inner, "eval", None)):
        return
    trainer.add_callback(EvaluationWeights())
    makes = trainer.lr_scheduler is None and trainer.args.should_log
    if makes and inner.wants_constant_lr and "constant" not in schedule:
        logger.warning(
            "%s takes the place of a schedule and wants a constant learning rate, which %r is not; use 'constant', and "
            "warmup_steps of the optimizer",
            type(inner).__name__,
            schedule,
        )
