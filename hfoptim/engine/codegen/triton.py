"""Triton from a scheduled element-wise rule: one launch steps every tensor of a bucket.

A launch costs as much as some hundred thousand entries, so it must not be paid per tensor. The kernel finds its tensors
through a table of addresses, and each of its programs one block of one of them through a map.
"""

from __future__ import annotations

import hashlib
import linecache
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.layout import PARAM, Layout, Slot
from hfoptim.engine.codegen.places import Places
from hfoptim.engine.codegen.schedule import Program, Store
from hfoptim.engine.codegen.trace import Node, Untraceable
from hfoptim.engine.operators import BOOLEAN, OPERATORS
from hfoptim.engine.plan import Plan
from hfoptim.engine.tensor_slots import TensorSlots

BLOCK = 1024

_TYPE = {"float32": "tl.float32", "float64": "tl.float64", "bfloat16": "tl.bfloat16", "float16": "tl.float16"}
_HEAD = """\
import triton
import triton.language as tl
from hfoptim.engine.codegen.triton_runtime import *


@triton.jit
def step(table, owner, first, sizes, values, seeds, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    tensor = tl.load(owner + block)
    at = tl.load(first + block) + tl.arange(0, BLOCK)
    live = at < tl.load(sizes + tensor)
"""


def generate(program: Program, layout: Layout, scalars: tuple[str, ...]) -> str:
    """The source of a module with the kernel `step`.

    Raises:
        Untraceable: the rule needs more than one pass, or codes.
    """
    if program.axes != 1 or program.phases != 1 or layout.coded or layout.rounding.startswith("remainder"):
        raise Untraceable("more than one pass, or codes")
    return _HEAD + "".join(f"    {line}\n" for line in _Writer(program, layout, scalars).lines())


class _Writer(Places):
    def __init__(self, program: Program, layout: Layout, scalars: tuple[str, ...]) -> None:
        super().__init__(program)
        self.layout, self.scalars = layout, scalars
        self.real = _TYPE[layout.compute]

    def lines(self) -> Iterator[str]:
        time = (0, 0)
        stores = self.program.stored(time, "full")
        reads = self.program.reads(time)
        for i in self.uniform:
            node = self.nodes[i]
            if node.op == "scalar":
                yield f"v{i} = tl.load(values + {self.scalars.index(node.value)})"
            else:
                yield f"v{i} = {self._expression(node, 'tl.float64')}"
        for i in self.uniform:
            if self.nodes[i].op not in BOOLEAN:
                yield f"v{i} = v{i}.to({self.real})"
        for index in sorted({*reads.values(), *(store.position for store in stores)}):
            yield self._pointer(f"p{index}", self.layout.slots[index].position, self._kept(self.layout.slots[index]))
        if self.layout.rounding == "kahan":
            yield self._pointer("rest", self.layout.tensors - 1, self._kept(self.layout.slots[PARAM]))
        for i, index in reads.items():
            yield f"v{i} = tl.load(p{index} + at, mask=live, other=0.0).to({self.real})"
        for i in self.program.expand(time, self.program.roots(time))[0]:
            yield f"v{i} = {self._expression(self.nodes[i], self.real)}"
        for store in stores:
            yield from self._write(store)

    def _pointer(self, name: str, position: int, kept: str) -> str:
        return f"{name} = tl.load(table + tensor * {self.layout.tensors} + {position}).to(tl.pointer_type({kept}))"

    def _kept(self, slot: Slot) -> str:
        return _TYPE[slot.kept]

    def _write(self, store: Store) -> Iterator[str]:
        index, value, slot = store.position, f"v{store.node}", self.layout.slots[store.position]
        kept = self._kept(slot)
        if index == PARAM and self.layout.rounding == "kahan":
            yield f"whole = {value} + tl.load(rest + at, mask=live, other=0.0).to({self.real})"
            yield f"rounded = {_rounded('whole', kept)}"
            yield f"tl.store(p{index} + at, rounded, mask=live)"
            yield f"lost = whole - rounded.to({self.real})"
            yield f"tl.store(rest + at, {_rounded('lost', kept)}, mask=live)"
            return
        if slot.stochastic:
            yield f"seed = (tl.load(seeds + tensor) + {slot.salt * 0xC2B2AE3D & 0xFFFFFFFF}).to(tl.uint32)"
            value = f"stochastic({value}, hashed(at.to(tl.uint32), seed))"
        else:
            value = _rounded(value, kept)
        yield f"tl.store(p{index} + at, {value}, mask=live)"

    def _expression(self, node: Node, real: str) -> str:
        op, args = node.op, [f"v{a}" for a in node.args]
        if op == "number":
            number = repr(float(node.value)) if math.isfinite(node.value) else f"float('{node.value}')"
            return f"tl.full((), {number}, {real})"
        if op == "cast":
            kept = "tl.bfloat16" if node.value is torch.bfloat16 else "tl.float16"
            return f"{_rounded(args[0], kept)}.to({real})"
        operator = OPERATORS[op]
        return (operator.triton or operator.cpp).format(*args)


def _rounded(value: str, kept: str) -> str:
    """A value cast to a dtype; to bfloat16 by its bits, which Triton's interpreter would cut off."""
    return f"nearest({value})" if kept == "tl.bfloat16" else f"{value}.to({kept})"


@cache
def load(source: str) -> Any:
    """The kernel of a source."""
    name = f"hfoptim_triton_{hashlib.sha256(source.encode()).hexdigest()[:32]}"
    # Triton reads a function's source as tracebacks do, which find it here without a file.
    linecache.cache[f"<{name}>"] = len(source), None, source.splitlines(keepends=True), f"<{name}>"
    module = ModuleType(name)
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)
    return module.step


def run(plan: Plan, rows: Sequence[TensorSlots], scalars: Mapping[str, Any], seeds: Sequence[int] = ()) -> None:
    """Step rows of contiguous tensors of an element-wise plan, in one launch.

    Raises:
        Untraceable: no kernel is generated for the plan.
    """
    names = tuple(scalars)
    kernel = _loaded(native.traced(plan, names, rows[0]), names)
    device = rows[0].param.device
    sizes = tuple(row.param.numel() for row in rows)
    owner, first, entries = _blocks(sizes, device)
    table = _sent([tensor.data_ptr() for row in rows for tensor in row.tensors], torch.int64, device)
    numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in scalars.values()]
    values = _sent(numbers, torch.float64, device)
    for place, value in enumerate(scalars.values()):
        if isinstance(value, Tensor):
            values[place] = value
    random = _sent(list(seeds) or [0] * len(rows), torch.int64, device)
    if len(owner):
        kernel[(len(owner),)](table, owner, first, entries, values, random, BLOCK=BLOCK)


def _loaded(found: tuple[Program, Layout, tuple[str, ...]], names: tuple[str, ...]) -> Any:
    # By identity: `traced` gives the same object for the same rule, and reading its nodes would take longer.
    if (id(found), names) not in _kernels:
        _kernels[id(found), names] = found, load(generate(found[0], found[1], names))
    return _kernels[id(found), names][1]


_kernels: dict[tuple[int, tuple[str, ...]], tuple[Any, Any]] = {}


@cache
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For every block its tensor and its first entry; and the sizes of the tensors."""
    counts = torch.tensor([-(-size // BLOCK) for size in sizes], device="cpu")
    owner = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
    first = (torch.arange(len(owner), device="cpu") - (counts.cumsum(0) - counts)[owner]) * BLOCK
    return owner.to(device), first.to(device), torch.tensor(sizes, device="cpu").to(device)


def _sent(numbers: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, without waiting for it."""
    tensor = torch.tensor(numbers, dtype=dtype, device="cpu")
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
