"""The random numbers that a model may draw, to draw them again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomNumbers:
    """States of the generators that a model may draw from: torch's for the CPU and one device, Python's, NumPy's."""

    cpu: Tensor
    device: tuple[Any, Tensor] | None
    python: Any
    numpy: Any

    @classmethod
    def now(cls, device: torch.device) -> RandomNumbers:
        """The states there are.

        Args:
            device: the one that the process works on.
        """
        module = None if device.type == "cpu" else torch.get_device_module(device)
        of_device = (module, module.get_rng_state()) if module and hasattr(module, "get_rng_state") else None
        return cls(torch.get_rng_state(), of_device, random.getstate(), np.random.get_state())  # noqa: NPY002

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            module, state = self.device
            module.set_rng_state(state)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
