"""Flags in other libraries' checkpoints that say what happens here anyway: tables for `RuleOptimizer.peer_flags`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hfoptim.engine import Decay, RuleOptimizer


def any_value(optimizer: RuleOptimizer, value: Any, group: Mapping[str, Any]) -> bool:
    """Nothing follows from the flag, whatever its value."""
    return True


def _as_decoupled(optimizer: RuleOptimizer, value: Any, group: dict[str, Any]) -> bool:
    return bool(value) is (optimizer.decay_for(group) is not Decay.COUPLED) or group["weight_decay"] == 0


# torch.optim.Adam and AdamW.
TORCH_ADAM = {"decoupled_weight_decay": _as_decoupled}
# timm's newer classes: the peak of lr, which the engine takes where it needs it, and decay where the paper has it.
TIMM_DECAY = {"max_lr_snapshot": any_value, "decoupled_decay": False, "clipping_threshold": None}
