"""Bytes that a step moves to and from memory, by the engine's own schedule of its kernels.

A pass over a tensor reads and writes each entry once. What has not the parameter's size (a number per row, scalars) is
not counted, nor products of matrices between passes; codes count with their scales, and what an optimizer's sums over
all tensors read counts, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any
from unittest import mock

import torch

from hfoptim.engine import backends
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.layout import GRAD, PARAM, Layout
from hfoptim.engine.codegen.schedule import Program
from hfoptim.engine.codegen.trace import Untraceable
from hfoptim.engine.tensor_slots import TensorSlots

# A row that a backend was called for: plan, names of the scalars, tensors, and whether it is to be summed only.
Seen = tuple[Any, tuple[str, ...], TensorSlots, bool]


def adamw_bytes(dtype: torch.dtype) -> float:
    """What torch's AdamW moves per parameter: four tensors read and three written, all in the parameter's dtype."""
    return 7.0 * dtype.itemsize


@contextmanager
def watched(*stepping: Backend) -> Iterator[list[Seen]]:
    """The rows that backends are called for meanwhile, the engine's own that compile if none is given."""
    seen: list[Seen] = []

    def seeing(call: Callable[..., Any], probe: bool) -> Callable[..., Any]:
        def called(bucket: Bucket, *more: Any) -> Any:
            seen.extend((bucket.plan, tuple(bucket.scalars), copy(row), probe) for row in bucket.rows)
            return call(bucket, *more)

        return called

    with ExitStack() as patches:
        named = [getattr(b, "kernels", b) for b in vars(backends).values() if isinstance(b, Backend)]
        for backend in stepping or [b for b in named if b.compiles]:
            patches.enter_context(mock.patch.object(backend, "step", seeing(backend.step, False)))
            patches.enter_context(mock.patch.object(backend, "probe", seeing(backend.probe, True)))
        yield seen


def bytes_moved(optimizer: torch.optim.Optimizer) -> float | None:
    """Bytes per parameter that a step of the compiled runner moves; takes a step to find out.

    Returns:
        The bytes, or None where no kernel is generated for some of the parameters.
    """
    with watched() as seen:
        optimizer.step()
    return moved_by(optimizer, seen)


def moved_by(optimizer: torch.optim.Optimizer, seen: Sequence[Seen]) -> float | None:
    """`bytes_moved` of a step that was `watched`."""
    found = read_and_written(optimizer, seen)
    return None if found is None else sum(found)


def read_and_written(optimizer: torch.optim.Optimizer, seen: Sequence[Seen]) -> tuple[float, float] | None:
    """Bytes per parameter that a step that was `watched` has read, and written; None as for `bytes_moved`."""
    stepped = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    if sum(row.param.numel() for _, _, row, probe in seen if not probe) != stepped:
        return None
    known: dict[Any, tuple[float, float]] = {}
    read = written = 0.0
    for plan, names, row, probe in seen:
        key = (plan, names, probe, tuple((t.dtype, t.shape) for t in row.tensors))
        try:
            if key not in known:
                function = plan.rule.probe.fn if probe else None
                program, layout, _ = native.program_of(plan, names, row, function)
                known[key] = _row_bytes(program, layout, row)
        except Untraceable:
            return None
        read, written = read + known[key][0], written + known[key][1]
    return read / stepped, written / stepped


def _row_bytes(program: Program, layout: Layout, row: TensorSlots) -> tuple[float, float]:
    sizes = [_size(layout, index, row) for index in range(len(layout.slots))]
    rest = row.residual.element_size() * row.param.numel() if layout.has_rest else 0
    reads = writes = 0.0
    for phase in range(program.phases):
        read, written = _full(program, phase)
        reads += sum(sizes[index] for index in read)
        writes += sum(sizes[index] for index in written)
        # Kahan's term is updated where the parameter is; others belong to the value of the parameter that is read.
        if PARAM in written:
            writes += rest
        if PARAM in (read if layout.rest_is_read else written):
            reads += rest
    return reads, writes


def _size(layout: Layout, index: int, row: TensorSlots) -> int:
    slot = layout.slots[index]
    if index >= len(layout.slots) - layout.products:
        return row.param.numel() * getattr(torch, slot.kept).itemsize
    tensors = row.tensors[slot.position : slot.position + (2 if slot.coded else 1)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _full(program: Program, phase: int) -> tuple[set[int], set[int]]:
    """The full-size tensors, by slot, that a phase reads and writes. Walking a row again finds it in the cache."""
    read: set[int] = set()
    written: set[int] = set()
    for sub in range(program.subs(phase)):
        time = (phase, sub)
        read |= set(program.reads(time).values())
        written |= {store.position for store in program.stored(time, "full")}
    assert GRAD not in written
    return read, written


def read_again(program: Program, layout: Layout, row: TensorSlots) -> float:
    """Bytes per entry that walks over a row read of what an earlier walk of their phase has read, all together."""
    sizes = [_size(layout, index, row) for index in range(len(layout.slots))]
    if layout.rest_is_read:
        sizes[PARAM] += row.residual.element_size() * row.param.numel()
    found = 0
    for phase in range(program.phases):
        walks = [set(program.reads((phase, sub)).values()) for sub in range(program.subs(phase))]
        found += sum(sizes[index] for walk in walks for index in walk) - sum(sizes[i] for i in set().union(*walks))
    return found / row.param.numel()
