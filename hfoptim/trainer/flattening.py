"""DeepSpeed's ZeRO, which hands an optimizer parts of one long vector in place of the model's parameters."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.engine.distributed import flattened
from hfoptim.trainer import private


def attend(trainer: Any, optimizer: Any) -> None:
    """Raise where a trainer's optimizer would compute something else under DeepSpeed's ZeRO, before it starts.

    What needs the shapes of parameters has them from DeepSpeed's records, which are there at the first step.

    Args:
        trainer: the trainer, about to train.
        optimizer: its optimizer, wrapped or not.

    Raises:
        ValueError: it does what the parameters' shapes are not enough for; ZeRO-1, -2 or -3 is on.
    """
    if not private.zero_stage(trainer):
        return
    for inner in unwrap_all(optimizer, RuleOptimizer):
        for group in inner.param_groups:
            reason = flattened.unmet(inner, group, flattened.ZERO)
            if reason:
                raise ValueError(flattened.message(type(inner).__name__, reason, flattened.ZERO))
