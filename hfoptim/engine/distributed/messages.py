"""Tensors of any shapes and dtypes in one message of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What begins at a multiple of this can be viewed as any dtype.
ALIGNMENT = 16


def length(shape: torch.Size, dtype: torch.dtype) -> int:
    """Bytes that a tensor takes in a message."""
    return -(-shape.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def packed(tensors: Sequence[Tensor], device: torch.device, size: int | None = None) -> Tensor:
    """The message with these tensors.

    Args:
        tensors: one after the other.
        device: theirs.
        size: bytes that the message has, at least as many as the tensors take; None: so many.
    """
    message = torch.empty(
        sum(length(t.shape, t.dtype) for t in tensors) if size is None else size, dtype=torch.uint8, device=device
    )
    start = 0
    for tensor in tensors:
        # In logical order, whatever the layout.
        here = message[start : start + tensor.numel() * tensor.dtype.itemsize]
        here.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        start += length(tensor.shape, tensor.dtype)
    return message


def unpacked(message: Tensor, kinds: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor]:
    """The tensors of these shapes and dtypes in a message, as views of it."""
    found, start = [], 0
    for shape, dtype in kinds:
        found.append(message[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape))
        start += length(shape, dtype)
    return found
