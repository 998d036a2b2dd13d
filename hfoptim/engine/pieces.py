"""Pieces of a bucket: how eager backends cut large parameters of element-wise rules, and put small ones together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hfoptim.engine.bucket import Bucket
from hfoptim.engine.memory import contiguous, flat, sections
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Scope
from hfoptim.engine.storage.formats import ceil_div
from hfoptim.engine.tensor_slots import TensorSlots

# Entries a piece may have: on a CPU, few enough that what is computed in between stays in the caches and many enough
# that the work outweighs the calls (measured from 2^14 to 2^22); a GPU wants launches that fill it.
PIECE = {"cpu": 1 << 18, "default": 1 << 24}
# Coding needs several times the memory in between, indices and random bits: below 256 MB with this.
_ORDERED_PIECE = 1 << 21


class Piece(NamedTuple):
    """A row, or a part of one.

    Args:
        row: its tensors.
        seed: of the parameter's random bits.
        start: index of the first entry in the parameter, in logical order; counts where the plan is `ordered`.
    """

    row: TensorSlots
    seed: int = 0
    start: int = 0


def batches(bucket: Bucket) -> Iterator[list[Piece]]:
    """Pieces put together until they have as many entries as the bucket's device takes at once."""
    limit = _limit(bucket) if bucket.rows else 0
    batch: list[Piece] = []
    filled = 0
    for piece in pieces(bucket):
        numel = piece.row.param.numel()
        if batch and filled + numel > limit:
            yield batch
            batch, filled = [], 0
        batch.append(piece)
        filled += numel
    if batch:
        yield batch


def pieces(bucket: Bucket) -> Iterator[Piece]:
    """The bucket's rows; large ones of element-wise rules cut into pieces."""
    if not bucket.rows:
        return
    plan, limit = bucket.plan, _limit(bucket)
    for index, row in enumerate(bucket.rows):
        seed = bucket.seeds[index] if plan.ordered else 0
        if plan.scope is not Scope.ELEMENT or row.param.numel() <= limit:
            yield Piece(row, seed)
        elif plan.ordered:
            yield from _in_order(plan, row, seed, limit)
        elif (views := flat(row.tensors)) is None:
            yield Piece(row)
        else:
            for *_, left, right in sections(1, row.param.numel(), limit):
                yield Piece(plan.slots(view[left:right] for view in views))


def _limit(bucket: Bucket) -> int:
    """How many entries eager work on the bucket's device takes at once."""
    size = PIECE.get(bucket.device.type, PIECE["default"])
    return min(size, _ORDERED_PIECE) if bucket.plan.ordered else size


def _in_order(plan: Plan, row: TensorSlots, seed: int, limit: int) -> Iterator[Piece]:
    """A row in pieces that are runs of entries in logical order, and begin with a block."""
    shape, tensors = row.param.shape, row.tensors
    block = max([1, *(storage.block for storage in plan.storage)])
    scales = [state[-1] for storage, state in zip(plan.storage, row.states, strict=True) if storage.bits]
    rows = len(scales[0]) if scales else shape[0]
    columns = shape.numel() // rows
    # How many entries of a matrix row make one entry of each tensor's row.
    spans = [1, 1, *(span for storage in plan.storage for span in storage.spans), 1][: len(tensors)]
    if contiguous(tensors):
        matrices = [t.view(rows, ceil_div(columns, span)) for t, span in zip(tensors, spans, strict=True)]
        for top, bottom, left, right in sections(rows, columns, limit, block):
            piece = [
                matrix[top:bottom, left // span : ceil_div(right, span)]
                for matrix, span in zip(matrices, spans, strict=True)
            ]
            yield Piece(plan.slots(piece), seed, top * columns + left)
        return
    if rows not in (1, shape[0]):
        yield Piece(row, seed)
        return
    # Without a matrix view, along dimension 0, by as many slices as begin with a block.
    inner = shape.numel() // shape[0]
    unit = 1 if rows == shape[0] else block
    step = max(unit, limit // inner // unit * unit)
    for start in range(0, shape[0], step):
        end = min(shape[0], start + step)
        piece = []
        for tensor, span in zip(tensors, spans, strict=True):
            if tensor.shape[0] == shape[0]:
                piece.append(tensor[start:end])
            else:
                piece.append(tensor[:, start * inner // span : ceil_div(end * inner, span)])
        yield Piece(plan.slots(piece), seed, start * inner)
