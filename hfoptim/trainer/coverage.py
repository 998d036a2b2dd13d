"""Parameters that are to be trained and that no group of the optimizer has: they are named when training starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all
from hfoptim.trainer import private
from hfoptim.trainer.groups import modules_of
from hfoptim.wrappers import CombinedOptimizer, Wrapper

logger = logging.getLogger(__name__)

SHOWN = 20


class Coverage(TrainerCallback):
    """Warns once of parameters that require gradients, or get some, and that the optimizer does not have.

    At the start of the training the model's own are looked at. Other modules of a trainer, such as a loss with weights,
    are looked at before the first step, when the parameters that are trained have gradients: references and teachers
    have none.
    """

    def __init__(self) -> None:
        self.first = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        self.first = True
        if not trainer.is_deepspeed_enabled:  # which has parameters of its own
            wanted = {name: param for name, param in trainer.model.named_parameters() if param.requires_grad}
            _warn(trainer, wanted, "require gradients, but")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.first:
            self.first = False
            trainer = private.trainer_in_charge()
            own = {id(param) for param in trainer.model.parameters()}
            wanted = {
                f"{prefix}.{name}": param
                for prefix, module in modules_of(trainer)
                for name, param in module.named_parameters()
                if param.grad is not None and id(param) not in own
            }
            if not trainer.is_deepspeed_enabled:
                _warn(trainer, wanted, "get gradients, but")


def attend(trainer: Any, optimizer: Any) -> None:
    """Have parameters named that are in no group, if a trainer's optimizer is ours.

    Args:
        trainer: the trainer, about to train.
        optimizer: its optimizer, wrapped or not.
    """
    ours = unwrap_all(optimizer, (RuleOptimizer, CombinedOptimizer, Wrapper))
    if ours and not any(isinstance(callback, Coverage) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(Coverage())


def _warn(trainer: Any, wanted: Mapping[str, Tensor], what: str) -> None:
    held = {id(param) for group in trainer.optimizer.param_groups for param in group["params"]}
    missing = [name for name, param in wanted.items() if id(param) not in held]
    if missing and trainer.args.should_log:
        names = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        logger.warning(
            "%d of %d parameters %s are in no group of %s, which leaves them as they are: %s. Give them to the "
            "optimizer, or freeze them with requires_grad_(False)",
            len(missing),
            len(wanted),
            what,
            type(unwrap(trainer.optimizer)).__name__,
            names,
        )
