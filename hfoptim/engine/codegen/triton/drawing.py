"""Normal noise on a GPU: one launch for all tensors, where torch's operations are some seventy for each."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.codegen.triton import launch
from hfoptim.engine.codegen.triton.first_use import told_once

DTYPES = (torch.float32, torch.float64)
# Entries that one program draws.
_BLOCK = 1024
# How far a number may be from that of torch's operations, which work it out in double precision.
_FINE = {torch.float32: 1e-5, torch.float64: 1e-10}


def draw(tensors: Sequence[Tensor], seeds: Sequence[int]) -> None:
    """Fill tensors with numbers of a standard normal distribution, those of `storage.normal` to rounding.

    Args:
        tensors: contiguous, of one device and dtype, one of `DTYPES`.
        seeds: of each.
    """
    from hfoptim.engine.codegen.triton import written  # needs Triton

    numbers, blocks = array("q"), 0
    for tensor, seed in zip(tensors, seeds, strict=True):
        if tensor.numel():
            numbers.extend((tensor.data_ptr(), tensor.numel(), blocks, seed))
            blocks += -(-tensor.numel() // _BLOCK)
    if not blocks:
        return
    device = tensors[0].device
    with launch.on(device):
        table = torch.empty(len(numbers), dtype=torch.int64, device=device)
        launch.upload(numbers, torch.int64, table)
        given = [table, len(numbers) // 4, tensors[0].dtype is torch.float64, _BLOCK]
        launch.start(written.drawn, blocks, given, 4)


@told_once("draws noise by torch's operations, some seventy launches a tensor: Triton's kernel for it")
def problem(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why not, after one draw of a sample."""
    seeds = [storage.row_seed(3, number) for number in range(3)]
    sample = [torch.empty(size, dtype=dtype, device=device) for size in (2500, 1024, 3)]
    draw(sample, seeds)
    others = [storage.normal(t.shape, seed, dtype, device) for t, seed in zip(sample, seeds, strict=True)]
    off = max(float((a - b).abs().nan_to_num(nan=torch.inf).max()) for a, b in zip(sample, others, strict=True))
    return None if off <= _FINE[dtype] else f"gave numbers that are {off:.1e} away"
