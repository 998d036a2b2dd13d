"""Triton from a scheduled flat program: element-wise rules, and reductions over whole tensors.

A launch costs as much as some hundred thousand entries, so it must not be paid per tensor: each function steps all
tensors of a bucket. One of its programs takes one block of one tensor, which it finds through a map and a table of
addresses; where sums are taken, a run of blocks. Passes over memory follow each other as the schedule has them. What
the programs of one have left of a sum, every program of the next adds up for itself, which saves the launch in between:
runs are as long as it takes for that to be little. Every sum has its own place and its own order: nothing is atomic, so
that a step gives the same bits every time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from hfoptim.engine.codegen.layout import PARAM, Layout, Slot
from hfoptim.engine.codegen.places import Places
from hfoptim.engine.codegen.schedule import Program, Store, Time
from hfoptim.engine.codegen.trace import REDUCTIONS, Node
from hfoptim.engine.codegen.triton.registers import needed
from hfoptim.engine.operators import BOOLEAN, OPERATORS

# Entries of a block, which one program takes. Of partial sums those that a program adds up at a time, one that does
# nothing else and one of a pass.
BLOCK = 1024
SUMS = 2048
PARTS = 256
# Of a tensor of n blocks a program takes about sqrt(n) / RUN, where sums are taken. Each of the RUN sqrt(n) programs
# then reads as many partial sums, RUN^2 for each of its blocks: half a byte per entry, out of the cache.
RUN = 8

# Where each of its entries needs more registers than so many, about, a thread takes 4 entries of a block, not 8: 8 of
# them take more than the 128 that are wanted, or 168 in double precision (as compiled, docs/performance.md).
MOST_NEEDED = 11

# Triton's types of the functions' arguments. `results` has that of the rule's arithmetic.
TYPES = {
    "table": "*i64",  # per row: the addresses of its tensors, then what `COLUMNS` names
    "owner": "*i32",  # per block: its row
    "values": "*fp64",  # the scalars, then one seed per row
    "lines": "*i32",  # per part of the columns of a batch: its row of the table
    "partials": "*fp64",  # per program that takes a block, or a run of them: its part of each sum
    "vectors": "*fp32",  # per row of the table: values of its columns, batches and rows, and what blocks add to columns
    "own": "*fp64",  # per row: its own scalars
    "books": "*fp32",  # of each code its values, then the midpoints between them
    "cells": "*u8",  # of each code the least code by the upper bits of a value
    "results": "*fp32",  # a probe's sums
    "rows": "i32",  # how many
    "programs": "i32",  # how many take a block, or a run of them
}
# Numbers that differ from call to call, and must not make a function anew.
_COUNTS = ("rows", "programs")
# What a row of the table has behind its addresses: entries; number of the first program that takes a block of it, and
# how many do; the first of its `lines`; where its `vectors` begin; rows of a batch; columns, those of coded state where
# there is any; blocks of a batch; blocks of a program.
COLUMNS = ("entries", "first", "blocks", "line", "vector", "height", "columns", "tiles", "run")

KEPT = {"float32": "tl.float32", "float64": "tl.float64", "bfloat16": "tl.bfloat16", "float16": "tl.float16"}
_RESTS = {"remainder8": "tl.int8", "remainder16": "tl.int16"}
HEAD = """\
import triton
import triton.language as tl
from hfoptim.engine.codegen.triton.runtime import *
"""


@dataclass(frozen=True)
class Launch:
    """One launch of a step; or what is called between two, which has no arguments.

    Args:
        name: of the function in the source.
        grid: "block", "row", "line" or "all": what one program takes; "product" where there is none, but a function of
            whole matrices.
        arguments: names of its arguments, keys of `TYPES`.
        warps: how many warps a program has.
    """

    name: str
    grid: str
    arguments: tuple[str, ...]
    warps: int = 4


class Cut(NamedTuple):
    """How a tensor is divided among programs.

    Args:
        entries: of the tensor.
        blocks, lines: how many programs take a block of it, or a run of them, and a part of the columns of a batch.
        vectors: how many numbers it has in `vectors`.
        more: the columns of its row of the table from "height" on.
    """

    entries: int
    blocks: int
    lines: int = 0
    vectors: int = 0
    more: tuple[int, int, int, int] = (0, 0, 0, 1)


@dataclass(frozen=True)
class Source:
    """Generated functions and how they are launched.

    Args:
        text: the module.
        launches: in order, all of one step.
        products: positions in the row of the tensors for functions of whole matrices, by the index of their value.
        tensors: how many addresses a row has.
        block: entries of a program; of coded state, a whole number of its blocks.
        codes: the kinds of codes there are, in the order in which `books` and `cells` have them.
        sums, own: numbers that a block leaves in `partials`, and a row in `own`.
        scales: position in the row of the first tensor of scales; None without codes.
        compute: "float32" or "float64".
        tile: rows and columns that a program takes at a time; zeros where they are not told apart.
        totals: where the results are, if all of them are in one place: in `own` those of each row, else in `partials`
            what each program has left of them.
        from_partials: whether they are in `partials`.
        cut: how a tensor is divided among programs.
    """

    text: str
    launches: tuple[Launch, ...]
    products: dict[int, int]
    tensors: int
    block: int
    codes: tuple[str, ...]
    sums: int
    own: int
    scales: int | None
    compute: str
    tile: tuple[int, int]
    totals: tuple[int, ...]
    from_partials: bool
    cut: Callable[[tuple[int, int, int]], Cut]

    def signature(self, launch: Launch) -> dict[str, str]:
        """Triton's type of each argument of a launch, in order."""
        types = dict(TYPES)
        if self.compute == "float64":
            types |= {"results": "*fp64", "vectors": "*fp64"}
        return {name: types[name] for name in launch.arguments}


class Writer(Places):
    """Writes the functions of a program whose tensors are seen as one run of entries."""

    codes: tuple[str, ...] = ()
    tile = (0, 0)

    def __init__(
        self, program: Program, layout: Layout, scalars: tuple[str, ...], tensor_scalars: frozenset[str]
    ) -> None:
        super().__init__(program)
        self.layout, self.scalars, self.tensor_scalars = layout, scalars, tensor_scalars
        self.real = KEPT[layout.compute]
        # Of the tensor's own scalars those that some function reads from memory, and where they are there.
        self.kept = dict(self.own)
        self._read_kept: set[int] = set()
        phases = range(program.phases)
        self.runs = any(self.sums(phase, "scalar") for phase in phases)
        # A pass reads what the one before it has left while it leaves its own: each has places for itself.
        counts = [len(self._partial(phase)) for phase in phases]
        self.offsets, self.most = [sum(counts[:phase]) for phase in phases], max(1, sum(counts))
        stored = {s.position for s in program.stores if self.kinds[s.node] == "scalar"}
        # Numbers that a step reads and overwrites. Other programs may read them after the first one has written: from
        # the second pass on they are read from `own`, where the first pass has put them.
        self.overwritten = [i for i in self.own if self.nodes[i].op == "load" and self.nodes[i].value in stored]
        self.factors = self._factors()
        self.launches: list[Launch] = []

    def source(self) -> Source:
        """The module, and the launches of a step."""
        self._functions()  # to see what is read
        self.kept = {i: place for place, i in enumerate(sorted(self._read_kept))}
        self.launches.clear()
        text = HEAD + "\n".join(self._functions()) + "\n"
        layout = self.layout
        return Source(
            text=text,
            launches=tuple(self.launches),
            products={p.index: layout.slots[p.index].position for p in self.program.products},
            tensors=layout.tensors,
            block=BLOCK,
            codes=self.codes,
            sums=self.most,
            own=self._width,
            scales=next((slot.position + 1 for slot in layout.slots if slot.coded), None),
            compute=layout.compute,
            tile=self.tile,
            totals=tuple([self._partial_place(i) for i in self.factors])
            or tuple([self.kept[i] for i in self.program.results if i in self.kept]),
            from_partials=bool(self.factors),
            cut=self.cut,
        )

    @property
    def _width(self) -> int:
        return max(1, len(self.kept))

    def _functions(self) -> list[str]:
        lines: list[str] = []
        for phase in range(self.program.phases):
            lines += self._phase(phase)
            stored = [s.position for s in self._stores((phase,), "full")]
            called = [p for p in self.program.products if p.index in stored]
            self.launches += [Launch(f"product{p.index}", "product", ()) for p in called]
        if self.program.results:
            lines += self._function("total", "all", self._total())
        return lines

    def cut(self, shape: tuple[int, int, int]) -> Cut:
        """How a tensor is divided.

        Args:
            shape: (batches, rows, columns) as the kernel sees it; of coded state those of the matrix it is kept as.
        """
        entries = math.prod(shape)
        return self._in_runs(entries, -(-entries // BLOCK), 0, 0)

    def _in_runs(self, entries: int, blocks: int, height: int, columns: int) -> Cut:
        run = 1 + math.isqrt(max(0, blocks - 1)) // RUN if self.runs else 1
        return Cut(entries, -(-blocks // run), more=(height, columns, 0, run))

    def _phase(self, phase: int) -> Iterator[str]:
        """The functions of a pass and of what follows it."""
        if self.program.walks(phase):
            yield from self._function(f"pass{phase}", "block", self._pass(phase), warps=self._warps(phase))
        if self._ends(phase):
            yield from self._function(f"end{phase}", "row", self._end(phase), warps=8)

    def _warps(self, phase: int) -> int:
        """How many warps take a block together: with 8 entries for a thread, or 4 where those need its registers."""
        # With many tensors their addresses need some, too. Where all numbers have 4 bytes or more, that is free:
        # 4 of them still make an access of 16.
        narrow = self.layout.coded or self.layout.rounding in _RESTS or any("16" in s.kept for s in self.layout.slots)
        many = not narrow and self.layout.tensors > 4
        return 8 if many or self._needed(phase) > self._wide * MOST_NEEDED else 4

    @property
    def _wide(self) -> float:
        """How many times as many registers a thread may have in double precision, about."""
        return 1.5 if self.layout.compute == "float64" else 1.0

    def _needed(self, phase: int) -> float:
        """Registers that each entry of a thread needs, about."""
        walks = [(phase, sub) for sub in range(self.program.subs(phase))]
        loop = self.runs or not self.program.flat
        found = [needed(self.program, self.layout, time, loop) for time in walks if self.program.roots(time)]
        return max(found, default=0.0)

    def _function(self, name: str, grid: str, body: Iterable[str], warps: int = 4) -> Iterator[str]:
        lines = list(body)
        used = tuple(argument for argument in TYPES if any(_names(line, argument) for line in lines))
        self.launches.append(Launch(name, grid, used, warps))
        counts = [name for name in _COUNTS if name in used]
        yield from ("", "", f"@triton.jit(do_not_specialize={counts})" if counts else "@triton.jit")
        yield f"def {name}({', '.join(used)}):"
        yield from ("    " + line for line in lines)

    # -- numbers of a whole tensor ------------------------------------------------------------------------------

    def _numbers(self, roots: Iterable[int], here: Iterable[int]) -> Iterator[str]:
        """Definitions of scalars, in double precision.

        Args:
            roots: those that are to be known; nodes of other kinds are passed over.
            here: the tensor's own that are worked out at this place; the others are in `own`.
        """
        worked_out, needed = set(here), set()
        stack = [i for i in roots if self.kinds[i] == "scalar"]
        while stack:
            i = stack.pop()
            if i not in needed:
                needed.add(i)
                if i in self.uniform or i in worked_out:
                    stack += [a for a in self.nodes[i].args if self.kinds[a] == "scalar"]
        for i in sorted(needed):
            node = self.nodes[i]
            if i in self.uniform:
                yield f"v{i} = {self._scalar(node.value) if node.op == 'scalar' else expression(node, _F64)}"
            elif i in worked_out:
                yield f"v{i} = {self._own(i)}"
            else:
                self._read_kept.add(i)
                there = f"tl.load(own + tensor * {self._width} + {self.kept[i]})"
                yield f"v{i} = {there}{' != 0' if node.op in BOOLEAN else ''}"

    def _scalar(self, name: str) -> str:
        place = f"tl.load(values + {self.scalars.index(name)})"
        if name not in self.tensor_scalars:
            return place
        # The number of a tensor is where it was: the bits are its address.
        return f"tl.load({place}.to(tl.int64, bitcast=True).to(tl.pointer_type({self.real}))).to({_F64})"

    def _own(self, i: int) -> str:
        node = self.nodes[i]
        if node.op == "load":
            return f"tl.load({self._memory(self.layout.slots[node.value])}).to({_F64})"
        if node.op == "size":
            return f"({self._size(node.value)}).to({_F64})"
        if node.op in REDUCTIONS:
            return self._reduced(i, f"a{i}")
        return expression(node, _F64)

    def _size(self, labels: tuple[int, ...]) -> str:
        """How many entries dimensions have together."""
        return self._column("entries")

    def _column(self, name: str) -> str:
        """An entry of the tensor's row of the table."""
        return f"tl.load(row + {self.layout.tensors + COLUMNS.index(name)})"

    def _address(self, position: int) -> str:
        return f"tl.load(row + {position})"

    def _memory(self, slot: Slot) -> str:
        """A pointer to the first entry of a state that has no codes."""
        return f"{self._address(slot.position)}.to(tl.pointer_type({KEPT[slot.kept]}))"

    def _row(self) -> Iterator[str]:
        yield f"row = table + tensor * {self.layout.tensors + len(COLUMNS)}"

    # -- between passes -----------------------------------------------------------------------------------------

    def _after(self, phase: int) -> tuple[int, ...]:
        """The phases whose beginnings what is between this one and the next works out: that of the first, too."""
        return (0, 1) if phase == 0 else (phase + 1,)

    def _now(self, phase: int) -> list[int]:
        """The tensor's own scalars that are known once a phase is over."""
        return [i for i in self.own if self.times[i][0] in self._after(phase)]

    def _stores(self, phases: Iterable[int], *kinds: str) -> list[Store]:
        """Stores in some phases of nodes of some kinds."""
        return [s for s in self.program.stores if s.time[0] in phases and self.kinds[s.node] in kinds]

    def _folded(self, phase: int) -> bool:
        """Whether the pass that follows works out what is between: each of its programs by itself."""
        later = phase + 1 < self.program.phases
        return later and self.program.walks(phase) and self.program.walks(phase + 1)

    def _joins(self, phase: int) -> bool:
        """Whether what follows the pass before another one works it out: each of its programs by itself."""
        return False

    def _ends(self, phase: int) -> bool:
        if self._folded(phase) or self._joins(phase):
            return False
        last = phase + 1 == self.program.phases
        if self.factors and phase + 2 == self.program.phases:
            return bool(self._stores(self._after(phase), "scalar"))
        return bool(
            self._stores(self._after(phase), "scalar") or (self._now(phase) and (not last or self.program.results))
        )

    def _end(self, phase: int) -> Iterator[str]:
        """One tensor: what its blocks have left is added up, and its own numbers follow."""
        yield "tensor = tl.program_id(0)"
        yield from self._row()
        yield from self._added(phase, SUMS)
        now, stores = self._now(phase), self._stores(self._after(phase), "scalar")
        yield from self._numbers([*(i for i in now if i in self.kept), *(s.node for s in stores)], now)
        yield from self._remembered(now, stores)

    def _added(self, phase: int, size: int) -> Iterator[str]:
        """What the programs of a pass have left of the tensor's sums, added up, so many at a time."""
        sums = self.sums(phase, "scalar")
        if not sums:
            return
        yield f"part_first = {self._column('first')}"
        yield f"part_last = part_first + {self._column('blocks')}"
        yield f"part_at = tl.arange(0, {size})"
        for i in sums:
            yield f"a{i} = tl.full(({size},), {self._empty(i)}, {_F64})"
        yield f"for part in range(part_first, part_last, {size}):"
        for i in sums:
            there = f"partials + (part + part_at) * {self.most} + {self._partial_place(i)}"
            # Every program of the tensor reads them.
            how = f"mask=part + part_at < part_last, other={self._empty(i)}, eviction_policy='evict_last'"
            yield f"    {self._joined(i, f'tl.load({there}, {how})')}"

    def _remembered(self, now: Iterable[int], stores: Iterable[Store], mask: str = "") -> Iterator[str]:
        """The tensor's own numbers, to where they are read later."""
        for i in now:
            if i in self.kept:
                yield f"tl.store(own + tensor * {self._width} + {self.kept[i]}, v{i}.to({_F64}){mask})"
        for store in stores:
            slot = self.layout.slots[store.position]
            yield f"tl.store({self._memory(slot)}, v{store.node}.to({KEPT[slot.kept]}){mask})"

    def _partial(self, phase: int) -> list[int]:
        """Reductions of which a program leaves a number, in the order of `partials`."""
        return self.sums(phase, "scalar")

    def _partial_place(self, i: int) -> int:
        """Where among the numbers that a program leaves that of a reduction is."""
        phase = self.times[i][0] - 1
        return self.offsets[phase] + self._partial(phase).index(i)

    def _factors(self) -> dict[int, int | None]:
        """Of sums over all blocks that are the results, but for a factor that all tensors share, that factor.

        For these the sums of each tensor are not needed. None are there if other numbers are among the results.
        """
        found: dict[int, int | None] = {}
        results, last = self.program.results, (self.program.phases - 1, 0)
        for i in results:
            factor, node = None, self.nodes[i]
            if node.op == "mul":
                factor, i = sorted(node.args, key=lambda a: a not in self.uniform)
                node = self.nodes[i]
            readers = sum(i in self.nodes[j].args for j in self.live) + (i in results)
            shared = factor is None or factor in self.uniform
            if not (shared and node.op == "sum" and self.times[i] == last and readers == 1):
                return {}
            found[i] = factor
        return found

    def _total(self) -> Iterator[str]:
        """All tensors: the program's results, added up."""
        yield f"at = tl.arange(0, {SUMS})"
        results = self.program.results
        if self.factors:
            for place, i in enumerate(self.factors):
                yield f"a{i} = tl.zeros(({SUMS},), {_F64})"
                yield f"for start in range(0, programs, {SUMS}):"
                there = f"partials + (start + at) * {self.most} + {self._partial_place(i)}"
                yield f"    a{i} += tl.load({there}, mask=start + at < programs, other=0.0)"
                yield f"tl.store(results + {place}, tl.sum(a{i}).to({self.real}))"
            return
        yield from self._numbers([i for i in results if i in self.uniform], ())
        for place, i in enumerate(results):
            if i in self.uniform:
                yield f"tl.store(results + {place}, (v{i} * rows).to({self.real}))"
                continue
            yield f"a{i} = tl.zeros(({SUMS},), {_F64})"
            yield f"for start in range(0, rows, {SUMS}):"
            self._read_kept.add(i)
            there = f"tl.load(own + (start + at) * {self._width} + {self.kept[i]}, mask=start + at < rows, other=0.0)"
            yield f"    a{i} += {there}"
            yield f"tl.store(results + {place}, tl.sum(a{i}).to({self.real}))"

    # -- passes over memory -------------------------------------------------------------------------------------

    def _pass(self, phase: int) -> Iterator[str]:
        """One block, or a run of them: by accesses of 16 bytes where it is whole and every tensor begins there."""
        time: Time = (phase, 0)
        leaves = sorted(i for i in self.program.expand(time, self.program.roots(time))[1] if self.kinds[i] == "scalar")
        used = self._used(time)
        yield "block = tl.program_id(0)"
        yield "tensor = tl.load(owner + block)"
        yield from self._row()
        yield from self._frame()
        yield f"number = block - {self._column('first')}"
        for position in used:
            yield f"t{position} = {self._address(position)}"
        yield from self._reals(leaves, phase)
        yield from self._seed(phase)
        yield from (self._run if self.runs else self._one)(time, self._aligned(used))

    def _one(self, time: Time, aligned: list[str]) -> Iterator[str]:
        yield from self._place("number")
        yield f"if {' & '.join([*self._whole(), *aligned])}:"
        yield from ("    " + line for line in self._block(time, whole=True))
        yield "else:"
        yield from ("    " + line for line in self._block(time, whole=False))

    def _run(self, time: Time, aligned: list[str]) -> Iterator[str]:
        """Blocks one after the other, whole ones first, and what they leave of sums."""
        yield f"run = {self._column('run')}"
        yield "begin = number * run"
        yield f"stop = tl.minimum(begin + run, {self._blocks()})"
        yield f"whole = tl.maximum(tl.minimum(stop, entries // {BLOCK}), begin)"
        if conditions := [*self._always_whole(), *aligned]:
            yield f"whole = tl.where({' & '.join(conditions)}, whole, begin)"
        sums = self.sums(time[0], "scalar")
        for i in sums:
            yield f"a{i} = tl.full((), {self._empty(i)}, {_F64})"
        for start, end in (("begin", "whole"), ("whole", "stop")):
            yield f"for each in range({start}, {end}):"
            yield from ("    " + line for line in self._place("each"))
            yield from ("    " + line for line in self._block(time, whole=end == "whole"))
        factors = {i: factor for i in sums if (factor := self.factors.get(i)) is not None}
        yield from self._numbers(factors.values(), ())
        for i in sums:
            left = f"a{i} * v{factors[i]}" if i in factors else f"a{i}"
            yield f"tl.store(partials + block * {self.most} + {self._partial_place(i)}, {left})"

    def _reals(self, scalars: list[int], phase: int) -> Iterator[str]:
        """Definitions of scalars in the rule's own precision, as a pass reads them."""
        here, keep, stores = list[int](), list[int](), list[Store]()
        if phase == 0:
            here = list(self.own)
            keep = [i for i in self.overwritten if i in self.kept] if self._folded(0) or self._joins(0) else []
        elif phase > 0 and self._folded(phase - 1):
            here, keep, stores = self._between(phase - 1)
            yield from self._added(phase - 1, PARTS)
        yield from self._settled(scalars, here, keep, stores, f"block == {self._column('first')}")

    def _between(self, phase: int) -> tuple[list[int], list[int], list[Store]]:
        """What several programs work out of a tensor's own numbers once a phase is over.

        Returns:
            Those numbers; which of them one program puts where they are read later; and what it stores.
        """
        here = [i for i in self._now(phase) if i not in self.overwritten]
        return here, [i for i in here if i in self.kept], self._stores(self._after(phase), "scalar")

    def _settled(
        self, scalars: list[int], here: list[int], keep: list[int], stores: list[Store], opens: str
    ) -> Iterator[str]:
        """Definitions of scalars, and what the tensor's first program, of which `opens` is true, remembers."""
        yield from self._numbers([*scalars, *keep, *(s.node for s in stores)], here)
        if keep or stores:
            yield f"opens = {opens}"
            yield from self._remembered(keep, stores, ", mask=opens")
        for i in scalars:
            if self.nodes[i].op not in BOOLEAN:
                yield f"v{i} = v{i}.to({self.real})"

    def _seed(self, phase: int) -> Iterator[str]:
        if any(self.layout.slots[s.position].stochastic for s in self._stores((phase,), "full")):
            yield f"seed = tl.load(values + {len(self.scalars)} + tensor).to(tl.int64)"

    def _aligned(self, used: list[int]) -> list[str]:
        """That all of these tensors begin at a multiple of 16 bytes."""
        return [f"((({' | '.join(f't{position}' for position in used)}) & 15) == 0)"] if used else []

    def _used(self, time: Time) -> list[int]:
        """Positions in the row of the tensors that are read or written entry by entry."""
        reads = set(self.program.reads(time).values())
        stores = {s.position for s in self.program.stored(time, "full")}
        used = {self.layout.slots[index].position for index in reads | stores}
        if self.layout.uses_rest(PARAM in reads, PARAM in stores):
            used.add(self.layout.tensors - 1)
        return sorted(used)

    def _frame(self) -> Iterator[str]:
        """The sizes of the tensor."""
        yield f"entries = {self._column('entries')}"

    def _blocks(self) -> str:
        """How many blocks the tensor has."""
        return f"(entries + {BLOCK - 1}) // {BLOCK}"

    def _place(self, number: str) -> Iterator[str]:
        """Which entries of the tensor its block of this number has."""
        yield f"base = {number} * {BLOCK}"
        yield "left = entries - base"

    def _whole(self) -> list[str]:
        """That a block is whole."""
        return [f"(left >= {BLOCK})"]

    def _always_whole(self) -> list[str]:
        """That all blocks are but the last."""
        return []

    def _tile(self, whole: bool) -> Iterator[str]:
        """Where the entries of the block are, counted from `base`."""
        yield f"at = tl.arange(0, {BLOCK})"
        if not whole:
            yield "live = at < left"

    def _block(self, time: Time, whole: bool) -> Iterator[str]:
        """The statements that take one block."""
        yield from self._tile(whole)
        yield from self._entries(time, whole)
        for i in self.sums(time[0], "scalar"):
            value = f"v{self.nodes[i].args[0]}"
            if not whole:
                value = f"tl.where(live, {value}, {self._empty(i)})"
            yield self._joined(i, f"{self._reduced(i, value)}.to({_F64})")

    def _entries(self, time: Time, whole: bool) -> Iterator[str]:
        """What is read of the entries, made of them and written back."""
        program = self.program
        stores, reads = program.stored(time, "full"), program.reads(time)
        param_read, param_stored = PARAM in reads.values(), any(s.position == PARAM for s in stores)
        for index in sorted({*reads.values(), *(s.position for s in stores)}):
            yield from self._pointers(index, whole)
        if self.layout.uses_rest(param_read, param_stored):
            kept = _RESTS.get(self.layout.rounding, KEPT[self.layout.slots[PARAM].kept])
            yield f"rest = {self._pointer(self.layout.tensors - 1, kept, whole)}"
            if param_read or not self.layout.rest_is_read:
                yield f"left_over = {self._load('rest', whole)}"
        for i, index in reads.items():
            yield f"v{i} = {self._read(index, whole)}"
        for i in program.expand(time, program.roots(time))[0]:
            yield f"v{i} = {expression(self.nodes[i], self.real)}"
        for store in stores:
            yield from self._write(store, whole)

    def _empty(self, i: int) -> str:
        """What changes nothing in reduction `i`."""
        return "0.0" if self.nodes[i].op == "sum" else "float('-inf')"

    def _reduced(self, i: int, value: str) -> str:
        return f"tl.sum({value})" if self.nodes[i].op == "sum" else f"largest({value})"

    def _joined(self, i: int, value: str) -> str:
        """The statement that takes a value into reduction `i`."""
        return f"a{i} = a{i} + {value}" if self.nodes[i].op == "sum" else f"a{i} = larger(a{i}, {value})"

    def _pointer(self, position: int, kept: str, whole: bool, offset: str = " + base") -> str:
        # The hint is put on an operation of this branch only: the other one may not count on it.
        there = f"t{position}.to(tl.pointer_type({kept})){offset}"
        return f"tl.multiple_of({there}, 16)" if whole else there

    def _pointers(self, index: int, whole: bool) -> Iterator[str]:
        slot = self.layout.slots[index]
        yield f"p{index} = {self._pointer(slot.position, KEPT[slot.kept], whole)}"

    def _load(self, pointer: str, whole: bool) -> str:
        return f"tl.load({pointer} + {self._at(whole)}{'' if whole else ', mask=live, other=0'})"

    def _store(self, pointer: str, value: str, whole: bool) -> str:
        return f"tl.store({pointer} + {self._at(whole)}, {value}{'' if whole else ', mask=live'})"

    def _read(self, index: int, whole: bool) -> str:
        loaded = self._load(f"p{index}", whole)
        if index == PARAM and self.layout.rounding in _RESTS:
            return f"joined({loaded}, left_over)"
        if index == PARAM and self.layout.rounding == "kahan_read":
            return f"({loaded}.to({self.real}) + left_over.to({self.real}))"
        return f"{loaded}.to({self.real})"

    def _write(self, store: Store, whole: bool) -> Iterator[str]:
        index, value, slot = store.position, f"v{store.node}", self.layout.slots[store.position]
        rounding, kept = self.layout.rounding, slot.kept
        if index == PARAM and rounding.startswith("kahan"):
            yield f"exact = {value}{'' if self.layout.rest_is_read else f' + left_over.to({self.real})'}"
            yield f"rounded = {_rounded('exact', KEPT[kept])}"
            yield self._store(f"p{index}", "rounded", whole)
            yield self._store("rest", _rounded(f"exact - rounded.to({self.real})", KEPT[kept]), whole)
        elif index == PARAM and rounding in _RESTS:
            yield f"rounded, lost = split{_RESTS[rounding].removeprefix('tl.int')}({value})"
            yield self._store(f"p{index}", "rounded", whole)
            yield self._store("rest", "lost", whole)
        elif slot.stochastic:
            yield self._store(f"p{index}", f"stochastic({value}, {self._random(slot, whole)})", whole)
        else:
            yield self._store(f"p{index}", _rounded(value, KEPT[kept]), whole)

    def _random(self, slot: Slot, whole: bool) -> str:
        """32 random bits for each entry."""
        salt = slot.salt * 0xC2B2AE3D & 0xFFFFFFFF
        return f"hashed(({self._entry(whole)}).to(tl.uint32), (seed + {salt}).to(tl.uint32))"

    def _at(self, whole: bool) -> str:
        """Where the block's entries are behind a pointer."""
        return "at"

    def _entry(self, whole: bool) -> str:
        """The numbers of the block's entries in their tensor."""
        return "base + at"


def expression(node: Node, real: str) -> str:
    """What an operation computes, in Triton; its operands are `v` and their number.

    Args:
        node: the operation.
        real: Triton's name of what is computed in.
    """
    op, args = node.op, [f"v{a}" for a in node.args]
    if op == "number":
        number = repr(float(node.value)) if math.isfinite(node.value) else f"float('{node.value}')"
        return f"tl.full((), {number}, {real})"
    if op == "cast":
        return f"{_rounded(args[0], 'tl.bfloat16' if node.value is torch.bfloat16 else 'tl.float16')}.to({real})"
    operator = OPERATORS[op]
    return (operator.triton or operator.cpp).format(*args)


_F64 = "tl.float64"


def _names(line: str, argument: str) -> bool:
    return re.search(rf"\b{argument}\b", line) is not None


def _rounded(value: str, kept: str) -> str:
    """A value cast to a dtype; to bfloat16 by a function, as Triton's interpreter would cut the bits off."""
    return f"nearest({value})" if kept == "tl.bfloat16" else f"({value}).to({kept})"
