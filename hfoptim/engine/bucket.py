"""A bucket: tensors that take the same step, with the same scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.apply import entering
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Scope, hyper_type
from hfoptim.engine.tensor_slots import TensorSlots


@dataclass
class Bucket:
    """Tensors of one group, rule, dtype, device and step count.

    All tensors are real (complex ones come as views) and are written in place by the backend.

    Args:
        plan: rule and options.
        rows: for each parameter its tensors.
        scalars: what the rule sees as `h`: numbers, or 0-d tensors on the bucket's device.
        seeds: for each row that of the parameter's random bits; empty where the plan needs none.
    """

    plan: Plan
    rows: list[TensorSlots] = field(default_factory=list)
    scalars: dict[str, float | Tensor] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.rows[0].param.device
        return device

    def hyper(self) -> Any:
        """The scalars as the NamedTuple a rule reads."""
        return hyper_type(tuple(self.scalars))(*self.scalars.values())

    def chosen(self, rows: list[int]) -> Bucket:
        """The same bucket with these of its rows."""
        seeds = [self.seeds[i] for i in rows] if self.seeds else []
        return Bucket(self.plan, [self.rows[i] for i in rows], self.scalars, seeds)

    def occupied(self) -> Bucket:
        """The same bucket without parameters that have no entries, such as empty parts of sharded ones."""
        if all(row.param.numel() for row in self.rows):
            return self
        return self.chosen([i for i, row in enumerate(self.rows) if row.param.numel()])

    @contextmanager
    def shaped(self) -> Iterator[Bucket]:
        """The same bucket with its rows in the shape that the rule sees: views, or copies that are written back."""
        shape = self.plan.rule.shape
        if shape is None:
            yield self
            return
        rows, copies = [], []
        for row in self.rows:
            shaped = row.map(partial(_reshaped, row.param.shape, shape(row.param.shape)))
            copies += [(t, s) for t, s in zip(row.written, shaped.written, strict=True) if t.data_ptr() != s.data_ptr()]
            rows.append(shaped)
        yield Bucket(self.plan, rows, self.scalars, self.seeds)
        for tensor, copied in copies:
            tensor.copy_(copied.reshape(tensor.shape))


def _reshaped(own: torch.Size, seen: tuple[int, ...], tensor: Tensor) -> Tensor:
    return tensor.reshape(seen) if tensor.shape == own else tensor


def each_row(bucket: Bucket, function: Callable[..., Any]) -> Iterator[Any]:
    """What a pure function gives for each row: called like a rule, which it may be a part of."""
    plan, h = bucket.plan, bucket.hyper()
    for row in bucket.rows:
        weight, state = storage.decode(plan, row)
        weight, grad = entering(plan, h, row.grad, weight)
        yield function(grad, weight, *(s.to(plan.dtype) for s in state), h)


def flat(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """1-D views that walk through the memory of all tensors in the same order; None where there are none.

    That needs one dense layout shared by all of them, contiguous or permuted (channels-last, a transposed weight).
    """
    first = tensors[0]
    if all(t.is_contiguous() for t in tensors):
        return [t.view(-1) for t in tensors]
    if any(t.stride() != first.stride() for t in tensors) or not is_dense(first):
        return None
    return [t.as_strided((t.numel(),), (1,)) for t in tensors]


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor covers one gapless, non-overlapping piece of memory."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


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


def piece_size(bucket: Bucket) -> int:
    """How many entries eager work on the bucket's device takes at once."""
    size = PIECE.get(bucket.device.type, PIECE["default"])
    return min(size, _ORDERED_PIECE) if bucket.plan.ordered else size


def pieces(bucket: Bucket) -> Iterator[Piece]:
    """The bucket's rows; large ones of element-wise rules cut into pieces."""
    if not bucket.rows:
        return
    plan, limit = bucket.plan, piece_size(bucket)
    divisible, ordered = plan.scope is Scope.ELEMENT, plan.ordered
    for index, row in enumerate(bucket.rows):
        numel = row.param.numel()
        seed = bucket.seeds[index] if ordered else 0
        if not divisible or numel <= limit:
            yield Piece(row, seed)
        elif ordered:
            for piece, start in storage.cut(plan, row, limit):
                yield Piece(piece, seed, start)
        elif (views := flat(row.tensors)) is None:
            yield Piece(row)
        else:
            for start in range(0, numel, limit):
                length = min(limit, numel - start)
                yield Piece(plan.slots(view.narrow(0, start, length) for view in views))
