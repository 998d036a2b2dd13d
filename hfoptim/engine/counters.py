"""Step counters of many parameters, read and written in their memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from ctypes import c_float

import torch
from torch import Tensor


class Counters:
    """The step counters of a bucket's parameters, all of the same number, which lie in the memory of their tensors.

    Adding to them by torch, where each is a tensor of its own, takes three microseconds for each. Written so, their
    versions stay.

    Args:
        steps: 0-d tensors that `take` takes.
    """

    def __init__(self, steps: Sequence[Tensor]) -> None:
        self.steps = steps
        self.addresses = list(map(Tensor.data_ptr, steps))
        self.cells = [c_float.from_address(address) for address in self.addresses]

    @staticmethod
    def take(steps: Collection[Tensor]) -> bool:
        """Whether these are 0-d float32 tensors on a CPU, as the engine makes them."""
        return all(
            type(step) is Tensor and step.dtype is torch.float32 and step.device.type == "cpu" and step.dim() == 0
            for step in steps
        )

    def are(self, count: int) -> bool:
        """Whether all are at this number, in the memory where they were."""
        if list(map(Tensor.data_ptr, self.steps)) != self.addresses:  # before it is read: it may be gone
            return False
        return [cell.value for cell in self.cells].count(count) == len(self.cells)

    def set(self, count: int) -> None:
        """Put all at this number."""
        for cell in self.cells:
            cell.value = count
