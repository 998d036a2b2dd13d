"""Gradient release in a Trainer, for optimizers made with `gradient_release=True`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, unwrap
from hfoptim.trainer import private
from hfoptim.training.gradient_release import is_released, prepare_for_gradient_release, remove_gradient_release


class Releasing(TrainerCallback):
    """Prepares the model when the training begins, which is after it was wrapped and its optimizer loaded."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        check_arguments(args)
        model = trainer.model_wrapped
        _stop(model)  # a training that was cut short
        prepare_for_gradient_release(model, trainer.optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _stop(private.trainer_in_charge().model_wrapped)


def attend(trainer: Any, optimizer: Any) -> None:
    """Have gradients released in a trainer that is about to train, if its optimizer was made for that.

    Args:
        trainer: the trainer.
        optimizer: its optimizer, wrapped or not.
    """
    inner = unwrap(optimizer, RuleOptimizer)
    asked = inner is not None and any(group["gradient_release"] for group in inner.param_groups)
    if asked and not any(isinstance(callback, Releasing) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(Releasing())


def check_options(options: Mapping[str, Any], args: Any) -> None:
    """Raise if an optimizer's options ask for gradient release and the TrainingArguments for what excludes it."""
    if options.get("gradient_release"):
        check_arguments(args)


def check_arguments(args: Any) -> None:
    """Raise if TrainingArguments ask for what excludes gradient release.

    Raises:
        ValueError: gradients are to be clipped (as they are by default), accumulated, or scaled for float16.
    """
    if args.max_grad_norm is not None and args.max_grad_norm > 0:
        raise ValueError(
            f"max_grad_norm={args.max_grad_norm!r} clips by the norm of all gradients, of which gradient_release=True "
            f"keeps one at a time; give max_grad_norm=0"
        )
    if args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"gradient_accumulation_steps={args.gradient_accumulation_steps} adds up gradients, which "
            f"gradient_release=True uses and frees at once; give gradient_accumulation_steps=1"
        )
    if args.fp16:
        raise ValueError(
            "fp16=True scales gradients, which gradient_release=True uses before they are scaled back; give bf16=True"
        )


def _stop(model: Any) -> None:
    if any(map(is_released, model.parameters())):
        remove_gradient_release(model)
