"""Step sizes that follow a tensor's norm: where they are taken, and what they are where a norm is 0."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import Group


def adapts(group: Group) -> bool:
    """Whether the tensors of a group get step sizes of their own: where they are decayed, or always if so asked."""
    return bool(group["always_adapt"] or group["weight_decay"] != 0)


def unless_zero(ratio: Any, weight_norm: Any, update_norm: Any, otherwise: Any) -> Any:
    """The trust ratio of a tensor, or `otherwise` where one of the norms it is made of is 0."""
    return torch.where(weight_norm > 0, torch.where(update_norm > 0, ratio, otherwise), otherwise)
