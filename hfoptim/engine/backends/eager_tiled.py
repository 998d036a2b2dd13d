"""Large tensors of rules with reductions, piece by piece: what an eager step allocates in between stays small.

Run as it is written, a rule that needs the norm of its update holds several arrays of the parameter's size. Here its
schedule, made for generated kernels (`engine/codegen`), is carried out by torch's own operations, some rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.layout import PARAM
from hfoptim.engine.codegen.schedule import Program, Time
from hfoptim.engine.codegen.trace import Node, Untraceable
from hfoptim.engine.memory import contiguous, sections
from hfoptim.engine.operators import OPERATORS
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function, Scope
from hfoptim.engine.tensor_slots import TensorSlots

# Entries from which a tensor is worth it, and entries of a piece.
LARGE = 1 << 22
PIECE = 1 << 20


class Tiled(Backend):
    """Large tensors of rules with reductions piece by piece, and everything else by another backend.

    Args:
        other: that backend, whose name it has.
    """

    def __init__(self, other: Backend) -> None:
        self.other, self.name = other, other.name

    def step(self, bucket: Bucket) -> None:
        left = _step_large(bucket)
        if left.rows:
            self.other.step(left)

    def evaluate(self, bucket: Bucket, function: Function) -> Iterator[dict[str, Tensor]]:
        if not _divisible(bucket.plan):
            yield from self.other.evaluate(bucket, function)
            return
        for index, row in enumerate(bucket.rows):
            found = _program(bucket, row, function)
            if found is None:
                yield from self.other.evaluate(bucket.chosen([index]), function)
                continue
            program, names = found
            step = _Step(bucket.plan, program, row, bucket.scalars)
            step.run()
            yield {name: step.known[i] for name, i in zip(names, program.results, strict=True)}


def _step_large(bucket: Bucket) -> Bucket:
    """Step the large tensors of a bucket in place; gives the bucket of those that are left."""
    plan = bucket.plan
    if not _divisible(plan):
        return bucket
    left = Bucket(plan, [], bucket.scalars, [])
    for index, row in enumerate(bucket.rows):
        found = _program(bucket, row)
        if found is None:
            left.rows.append(row)
            left.seeds += bucket.seeds[index : index + 1]
        else:
            _Step(plan, found[0], row, bucket.scalars).run()
    return left


def _divisible(plan: Plan) -> bool:
    """Whether there may be schedules by which tensors are taken piece by piece."""
    return plan.scope is Scope.TENSOR and plan.plain


def _program(
    bucket: Bucket, row: TensorSlots, function: Function | None = None
) -> tuple[Program, tuple[str, ...]] | None:
    """(the schedule, the names of the results) for a large tensor that can be taken piece by piece, else None.

    The schedule is that of a function, or of the rule's step.
    """
    if row.param.numel() < LARGE:
        return None
    try:
        program, _, names = native.traced(bucket.plan, tuple(bucket.scalars), row, function)
    except Untraceable:
        return None
    # More than two axes: a piece would have to be whole batches.
    return (program, names) if program.axes < 3 and contiguous(row.tensors) else None


class _Step:
    """One step of one tensor, seen as rows of columns; a flat one as many rows of one column."""

    def __init__(self, plan: Plan, program: Program, row: TensorSlots, scalars: dict[str, Any]) -> None:
        self.plan, self.program, self.scalars = plan, program, scalars
        self.nodes, self.kinds, self.times = program.nodes, program.kinds, program.times
        shape = row.param.shape
        self.sizes = dict(enumerate(shape))
        rows = math.prod(shape[label] for label in program.merged[0]) if program.axes == 2 else 1
        self.residual = None if row.residual is None else row.residual.view(rows, -1)
        self.tensors = [row.param.view(rows, -1), row.grad.view(rows, -1), *(tensor for (tensor,) in row.states)]
        self.row_shape = (rows, shape.numel() // rows)
        read = {node.value: self.kinds[i] for i, node in enumerate(self.nodes) if node.op == "load"}
        live = {self.nodes[i].value for i in program.live if self.nodes[i].op == "load"}
        written = {store.position: self.kinds[store.node] for store in program.stores}
        loads = {**written, **{i: kind for i, kind in read.items() if i in live}}
        # Of what is neither, such as a row of means in a probe, nothing says the form.
        unused = {i for i, t in enumerate(self.tensors) if i not in loads and t.numel() != shape.numel()}
        forms = {"full": (rows, -1), "row": (-1, 1), "column": (1, -1), "scalar": ()}
        self.tensors = [t if i in unused else t.view(forms[loads.get(i, "full")]) for i, t in enumerate(self.tensors)]
        # Values that are there for the whole tensor, and sums that the running pass adds to.
        self.known: dict[int, Tensor] = {}
        self.sums: dict[int, Tensor] = {}
        # Values of all rows, which later passes may read.
        self.row_values: dict[int, Tensor] = {}

    def run(self) -> None:
        live = sorted(self.program.live)
        for phase in range(self.program.phases):
            for i in live:
                if self.times[i] == (phase, 0) and self.kinds[i] in ("scalar", "column"):
                    self.known[i] = self.sums.pop(i) if i in self.sums else self._value(i, self.known, slice(None))
            for store in self.program.stores:
                if store.time[0] == phase and self.kinds[store.node] in ("scalar", "column"):
                    self.tensors[store.position].copy_(self.known[store.node])
            if self.program.walks(phase):
                for where in self._pieces():
                    self._pass(phase, where)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        rows, columns = self.row_shape
        # Sums along a row need all of it.
        limit = PIECE if self.program.axes == 1 else max(PIECE, columns)
        for top, bottom, left, right in sections(rows, columns, limit):
            yield slice(top, bottom), slice(left, right)

    def _pass(self, phase: int, where: tuple[slice, slice]) -> None:
        values = dict(self.known)
        for sub in range(self.program.subs(phase)):
            time: Time = (phase, sub)
            for i in sorted(self.program.live):
                if self.kinds[i] == "row" and self.times[i] == time and i not in values:
                    values[i] = self._value(i, values, where)
                elif self.kinds[i] == "row" and self.times[i][0] < phase and i not in values:
                    values[i] = self.row_values[i][where[0]]
            full = dict(values)
            for i, index in self.program.reads(time).items():
                full[i] = self._read(index, where).to(self.plan.dtype)
            for i in self.program.expand(time, self.program.roots(time))[0]:
                full[i] = self._value(i, full, where)
            for i in self.program.reductions(time, "full"):
                self._reduce(i, full[self.nodes[i].args[0]], values)
            for i in self.program.reductions(time, "row"):
                self._reduce(i, values[self.nodes[i].args[0]], values)
            for store in self.program.stored(time, "full"):
                self._write(store.position, where, full[store.node])
        self._keep_rows(phase, where, values)

    def _reduce(self, i: int, value: Tensor, values: dict[int, Tensor]) -> None:
        """Reduce a piece: along its rows for good, else into a sum over all pieces."""
        reduce, join = (torch.sum, torch.add) if self.nodes[i].op == "sum" else (torch.amax, torch.maximum)
        if self.kinds[i] == "row":
            values[i] = reduce(value, 1, keepdim=True)
            return
        part = reduce(value, 0, keepdim=True) if self.kinds[i] == "column" else reduce(value)
        self.sums[i] = join(self.sums[i], part) if i in self.sums else part

    def _keep_rows(self, phase: int, where: tuple[slice, slice], values: dict[int, Tensor]) -> None:
        for i, value in values.items():
            if self.kinds[i] == "row" and self.times[i][0] == phase:
                kept = self.row_values.setdefault(i, value.new_empty(self.row_shape[0], 1))
                kept[where[0]] = value
        for store in self.program.stores:
            if self.kinds[store.node] == "row" and store.time[0] == phase:
                self.tensors[store.position][where[0]] = values[store.node].to(self.tensors[store.position].dtype)

    def _read(self, position: int, where: tuple[slice, slice]) -> Tensor:
        piece: Tensor = self.tensors[position][where]
        if position == PARAM and self.residual is not None:
            piece = storage.as_read(self.plan, piece, self.residual[where])
        return piece

    def _write(self, position: int, where: tuple[slice, slice], value: Tensor) -> None:
        target = self.tensors[position][where]
        if position == PARAM and self.residual is not None:
            value, self.residual[where] = storage.with_rest(self.plan, value, self.residual[where], target.dtype)
        target.copy_(value)

    def _value(self, i: int, values: dict[int, Tensor], where: Any) -> Tensor:
        node = self.nodes[i]
        if node.op == "load":
            tensor: Tensor = self.tensors[node.value]
            rows = where[0] if isinstance(where, tuple) and self.kinds[i] == "row" else slice(None)
            return (tensor[rows] if tensor.ndim else tensor).to(self.plan.dtype).clone()
        if node.op in ("scalar", "number", "size"):
            return self._number(node)
        args = [values[a] for a in node.args]
        if node.op == "cast":
            return args[0].to(node.value).to(self.plan.dtype)
        result: Tensor = OPERATORS[node.op].eager(*args)
        return result

    def _number(self, node: Node) -> Tensor:
        value = self.scalars[node.value] if node.op == "scalar" else node.value
        if node.op == "size":
            value = math.prod(self.sizes[label] for label in node.value)
        if isinstance(value, Tensor):
            return value
        device = self.tensors[0].device
        return torch.tensor(float(value), dtype=self.plan.dtype, device=device)
