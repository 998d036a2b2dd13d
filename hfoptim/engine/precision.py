"""The most precise real numbers that a device has: double precision, but on Apple's GPUs."""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """The dtype of these numbers on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def precise(value: Tensor) -> Tensor:
    """A tensor in that dtype: what grows over a whole run, or is summed over all tensors, needs it."""
    return value.to(widest(value.device))
