"""Rows of a bucket: which of a row's tensors is what, read as the rule sees it, written back, cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine.storage.formats import FULL, Rounding, Storage, ceil_div
from hfoptim.engine.storage.quantization import dequantize, quantize
from hfoptim.engine.storage.rounding import join_float32, split_float32, state_seed, stochastic_bfloat16

if TYPE_CHECKING:
    from hfoptim.engine.apply import Plan


class Row(NamedTuple):
    """A row's tensors by their part.

    Args:
        param, grad: the parameter and its gradient.
        states: for each state of the rule its tensors: one, or codes and scales.
        rest: Kahan's term or the remainder; None where the plan has neither.
    """

    param: Any
    grad: Any
    states: list[list[Any]]
    residual: Any


def split(plan: Plan, row: Sequence[Any]) -> Row:
    """A row (of tensors, or of anything in their places) by its parts."""
    param, grad, *tensors = row
    residual = tensors.pop() if plan.rounding.residual else None
    states = []
    for storage in plan.storage:
        states.append(tensors[: storage.tensors])
        tensors = tensors[storage.tensors :]
    return Row(param, grad, states, residual)


def decode(plan: Plan, row: Row) -> tuple[Tensor, list[Tensor]]:
    """(parameter, states) for the rule: exact weights where remainders are kept, and codes as numbers.

    What a cast to the compute dtype is enough for comes as it is; values of codes come in the shape of the parameter.
    """
    weight = join_float32(row.param, row.residual) if plan.rounding.remainder else row.param
    return weight, [decode_state(s, kept, row.param.shape) for s, kept in zip(plan.storage, row.states, strict=True)]


def decode_state(storage: Storage, kept: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """The values of one state; codes as float32 in that shape."""
    if not storage.bits:
        return kept[0]
    codes, scale = kept
    return dequantize(storage, codes, scale, _columns(shape, len(scale))).view(shape)


def _columns(shape: torch.Size, rows: int) -> int:
    """Entries of each of so many rows; of a part without rows, too."""
    return shape.numel() // rows if rows else math.prod(shape[1:])


def encode(plan: Plan, row: Row, weight: Tensor, states: Sequence[Tensor | None], seed: int, start: int) -> None:
    """Write a step's result into a row.

    Args:
        plan, row: the row's.
        weight: the new parameter in the compute dtype.
        states: the new states in the compute dtype; None leaves one as it is.
        seed: the parameter's, for random bits.
        start: index of the row's first entry in the parameter, in logical order.
    """
    # States first: one of them may be the parameter as it was.
    for index, (storage, kept, new) in enumerate(zip(plan.storage, row.states, states, strict=True)):
        if new is not None:
            encode_state(storage, kept, new, state_seed(seed, index), start)
    encode_param(plan, row, weight, seed, start)


def encode_param(plan: Plan, row: Row, weight: Tensor, seed: int, start: int) -> None:
    """Write a new parameter, and what its rounding leaves."""
    rounding, param = plan.rounding, row.param
    if rounding is Rounding.NEAREST:
        param.copy_(weight)
    elif rounding is Rounding.STOCHASTIC:
        param.copy_(stochastic_bfloat16(weight, seed, start))
    elif rounding is Rounding.KAHAN:
        number, residual = kahan(weight, row.residual, param.dtype)
        param.copy_(number)
        row.residual.copy_(residual)
    else:
        number, residual = split_float32(weight, row.residual.dtype)
        param.copy_(number)
        row.residual.copy_(residual)


def kahan(weight: Any, residual: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    """(weight plus rest, rounded; the new rest), both in `dtype`; for tensors and `TensorList`s."""
    weight = weight + residual.to(weight.dtype)
    rounded = weight.to(dtype)
    return rounded, (weight - rounded.to(weight.dtype)).to(dtype)


def encode_state(storage: Storage, kept: Sequence[Tensor], new: Tensor, seed: int, start: int) -> None:
    """Write the new values of one state."""
    if storage.copied:
        kept[0].copy_(new)
    elif not storage.bits:
        kept[0].copy_(stochastic_bfloat16(new, seed, start))
    else:
        codes, scale = kept
        matrix = new.reshape(len(scale), _columns(new.shape, len(scale)))
        new_codes, new_scale = quantize(storage, matrix, seed, start)
        codes.copy_(new_codes.view(codes.shape))
        scale.copy_(new_scale)


def cut(plan: Plan, tensors: Sequence[Tensor], limit: int) -> Iterator[tuple[list[Tensor], int]]:
    """A row in pieces of about `limit` entries, each with the index of its first entry in logical order.

    A piece is a run of entries in logical order, and begins with a block.
    """
    row = split(plan, tensors)
    shape = row.param.shape
    block = max(storage.block for storage in (FULL, *plan.storage))
    scales = [kept[1] for storage, kept in zip(plan.storage, row.states, strict=True) if storage.bits]
    rows = len(scales[0]) if scales else shape[0]
    columns = shape.numel() // rows
    # How many entries of a matrix row make one entry of each tensor's row.
    sizes = [1, 1]
    for storage in plan.storage:
        sizes += [8 // storage.bits, storage.block] if storage.bits else [1]
    sizes += [1] * (row.residual is not None)
    if all(tensor.is_contiguous() for tensor in tensors):
        matrices = [t.view(rows, ceil_div(columns, size)) for t, size in zip(tensors, sizes, strict=True)]
        for top, bottom, left, right in sections(rows, columns, limit, max(block, 1)):
            piece = [
                matrix[top:bottom, left // size : ceil_div(right, size)]
                for matrix, size in zip(matrices, sizes, strict=True)
            ]
            yield piece, top * columns + left
        return
    if rows not in (1, shape[0]):
        yield list(tensors), 0
        return
    # Without a matrix view, along dimension 0, by as many slices as begin with a block.
    inner = shape.numel() // shape[0]
    unit = 1 if rows == shape[0] else block
    step = max(unit, limit // inner // unit * unit)
    for start in range(0, shape[0], step):
        end = min(shape[0], start + step)
        piece = []
        for tensor, size in zip(tensors, sizes, strict=True):
            if tensor.shape[0] == shape[0]:
                piece.append(tensor[start:end])
            else:
                piece.append(tensor[:, start * inner // size : ceil_div(end * inner, size)])
        yield piece, start * inner


def sections(rows: int, columns: int, limit: int, block: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of sections of a matrix: whole rows, or spans of blocks where rows are long."""
    if columns <= limit:
        step = limit // columns
        yield from ((top, min(rows, top + step), 0, columns) for top in range(0, rows, step))
        return
    span = max(block, limit // block * block)
    for top in range(rows):
        yield from ((top, top + 1, left, min(columns, left + span)) for left in range(0, columns, span))
