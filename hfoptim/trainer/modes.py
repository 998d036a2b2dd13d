"""Optimizers with a training and an evaluation mode, such as schedule-free ones: the right weights are saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, modes, unwrap_all
from hfoptim.trainer import private
from hfoptim.wrappers import Wrapper


class EvaluationWeights(TrainerCallback):
    """Has the evaluation weights saved, of an optimizer with two modes, and leaves the training as it is.

        Trainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[EvaluationWeights()])

    An optimizer of hfoptim that was chosen by name, or by `OptimizerCallback`, has it already. It serves every
    optimizer with methods `train()` and `eval()`, such as those of the package schedulefree; others are left alone.

    transformers asks for the evaluation weights before evaluations only, and for the training weights before every
    forward pass (4.57 and 5.x). In addition the evaluation weights are in the model

    - while the Trainer saves a checkpoint, and at its `on_save`;
    - during `trainer.save_model()` and `trainer.push_to_hub()`, whoever calls them; after it, what was there before;
    - at the end of every epoch. The end of the last is also that of the training, before the best model is loaded.

    Every optimizer.pt is in evaluation mode, so that it belongs to the weights that lie beside it.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        for name in private.SAVING:
            private.intercept(trainer, name, _saving)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        # Somebody may have evaluated since the forward pass.
        _switch(optimizer, "train")

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        if control.should_save:
            _switch(optimizer, "eval")

    def on_epoch_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        _switch(optimizer, "eval")


def attend(trainer: Any, optimizer: Any) -> None:
    """See that the right weights are saved of an optimizer of ours with two modes.

    Args:
        trainer: the trainer, about to make its schedule; gets a callback if the optimizer has two modes.
        optimizer: its optimizer, wrapped or not.
    """
    present = any(isinstance(callback, EvaluationWeights) for callback in trainer.callback_handler.callbacks)
    ours = unwrap_all(optimizer, (RuleOptimizer, Wrapper))
    if not present and any(two_modes(inner) is not None for inner in ours):
        trainer.add_callback(EvaluationWeights())


def two_modes(optimizer: Any) -> Any | None:
    """The optimizer with `train()` and `eval()` inside wrappers, None if there is none."""
    while optimizer is not None:
        # Accelerate's wrapper always has both, and so have several as one.
        if not isinstance(optimizer, private.AcceleratedOptimizer) and modes.has_two(optimizer):
            return optimizer if modes.with_two(optimizer) is not None else None
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def _switch(optimizer: Any, mode: str) -> None:
    inner = two_modes(optimizer)
    if inner is not None:
        getattr(inner, mode)()


def _saving(trainer: Any, save: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Any:
    """Call one of the trainer's methods that save, with the evaluation weights in the model."""
    inner = two_modes(trainer.optimizer)
    if inner is None or not all(group.get("train_mode", trainer.is_in_train) for group in inner.param_groups):
        return save(*args, **kwargs)
    inner.eval()
    try:
        return save(*args, **kwargs)
    finally:
        # After the Trainer's own checkpoint comes `on_save`, where others may want to save something too.
        if not (name == "_save_checkpoint" and trainer.control.should_save):
            inner.train()
