"""What all kernels have in common: expressions, what happens between passes, the function that is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from hfoptim.engine.codegen.layout import PARAM, Layout, Slot
from hfoptim.engine.codegen.places import Places
from hfoptim.engine.codegen.schedule import Program, Store, Time
from hfoptim.engine.codegen.trace import REDUCTIONS, Node
from hfoptim.engine.operators import BOOLEAN, OPERATORS

# Entries summed in the rule's own precision before the sum goes on in double.
SPAN = 4096
# Entries of a group of tensors that goes through all passes before the next does, so that later ones find it in the
# cache.
GROUP = 1 << 18

_C_TYPE = {"float32": "float", "float64": "double", "bfloat16": "bf16", "float16": "f16"}


class Writer(Places):
    """Writes one kernel. Subclasses write the passes over memory."""

    def __init__(
        self,
        program: Program,
        layout: Layout,
        scalars: tuple[str, ...],
        codebook: Callable[[str], Iterable[float]],
    ) -> None:
        super().__init__(program)
        self.layout, self.scalars, self.codebook = layout, scalars, codebook
        self.real = _C_TYPE[layout.compute]

    # -- expressions --------------------------------------------------------------------------------------------

    def _value(self, i: int, real: str) -> str:
        """Node `i` as an operand of `real` arithmetic."""
        if self.kinds[i] == "full":
            return f"v{i}"
        if self.nodes[i].op in BOOLEAN:
            # Where it is handed on from an earlier phase it is kept as a number.
            return f"(v{i} != 0)"
        return f"({real})v{i}" if self.kinds[i] == "scalar" else f"v{i}"

    def _define(self, i: int, real: str) -> str:
        node = self.nodes[i]
        return f"const {'bool' if node.op in BOOLEAN else real} v{i} = {self._expression(node, real)};"

    def _expression(self, node: Node, real: str) -> str:
        op, args = node.op, [self._value(a, real) for a in node.args]
        if op == "number":
            if math.isnan(node.value):
                return f"({real})NAN"
            finite = abs(node.value) != math.inf
            return f"({real}){node.value.hex()}" if finite else f"({real}){'-' if node.value < 0 else ''}INFINITY"
        if op == "cast":
            return f"{'round_bf16' if node.value is torch.bfloat16 else 'round_f16'}({args[0]})"
        if op == "pow" and self.nodes[node.args[1]].value == 1.0 / 3.0:
            return f"math::cube_root({args[0]})"
        return OPERATORS[op].cpp.format(*args, real=real)

    def _slot(self, index: int) -> Slot:
        return self.layout.slots[index]

    def _type(self, slot: Slot) -> str:
        return "uint8_t" if slot.coded else _C_TYPE[slot.kept]

    def _pointer(self, index: int) -> str:
        slot = self._slot(index)
        return f"(({self._type(slot)}*)w.at[{slot.position}])"

    # -- sums, and largest entries ------------------------------------------------------------------------------

    def _start(self, i: int) -> str:
        """What reduction `i` begins with."""
        return "0" if self.nodes[i].op == "sum" else "-INFINITY"

    def _join(self, i: int, so_far: str, value: str, real: str) -> str:
        """The statement that takes a value into reduction `i`."""
        if self.nodes[i].op == "sum":
            return f"{so_far} += {value};"
        return f"{so_far} = larger<{real}>({so_far}, {value});"

    def _clause(self, i: int, name: str = "a") -> str:
        """What OpenMP has to know of reduction `i` in `a<i>`."""
        return f"reduction({'+' if self.nodes[i].op == 'sum' else 'largest'}:{name}{i})"

    def _sum_place(self, i: int) -> str:
        """Where in `w.sums` the sums of node `i` begin."""
        before = [k for k in self.sums(self.times[i][0] - 1, "column", "batch") if k < i]
        lengths = ["w.B * w.C" if self.kinds[k] == "column" else "w.B" for k in before]
        return f"w.copies() * ({' + '.join(lengths) or '0'})"

    # -- the file -----------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        yield f"using real = {self.real};"
        yield '#include "runtime.h"'
        for kept in sorted({slot.kept for slot in self.layout.slots if slot.coded}):
            values = ", ".join(f"{float(v).hex()}f" for v in self.codebook(kept))
            yield f"static const float values_{kept}[] = {{{values}}};"
            yield f"static const Codebook<{kept[0]}> book_{kept}(values_{kept});"
        for phase in range(self.program.phases):
            yield from self._before(phase)
            if self.program.walks(phase):
                yield from self.pass_lines(phase)
        yield from self._entry()

    def _uniforms(self) -> Iterator[str]:
        for place, i in enumerate(self.uniform):
            yield f"  const double v{i} = u[{place}]; (void)v{i};"

    def _owns(self, phase: int) -> Iterator[str]:
        """The tensor's own scalars, as far as they are known before a phase's passes."""
        for i, place in self.own.items():
            if self.times[i][0] <= phase:
                yield f"  const double v{i} = w.own[{place}]; (void)v{i};"

    def _before(self, phase: int) -> Iterator[str]:
        """What is computed between passes: values of the tensor, of its batches, of its columns."""
        yield f"static void before{phase}(Work& w, const double* u) {{"
        yield "  (void)w; (void)u;"
        yield from self._uniforms()
        yield from self._owns(phase - 1)
        now = [i for i in self.live if self.times[i] == (phase, 0) and i not in self.uniform]
        scalars = self.sums(phase - 1, "scalar")
        for i in (i for i in now if self.kinds[i] == "scalar"):
            node = self.nodes[i]
            if node.op == "load":
                yield f"  const double v{i} = get({self._pointer(node.value)}[0]);"
            elif node.op == "size":
                yield f"  const double v{i} = (double)({self._size(node.value)});"
            elif node.op in REDUCTIONS:
                yield f"  double v{i} = {self._start(i)};"
                place = f"w.partial[k * {len(scalars)} + {scalars.index(i)}]"
                yield f"  for (int k = 0; k < w.threads; ++k) {self._join(i, f'v{i}', place, 'double')}"
            else:
                yield "  " + self._define(i, "double")
            yield f"  w.own[{self.own[i]}] = v{i};"
        for store in self._stores(phase, "scalar"):
            yield f"  put({self._pointer(store.position)}[0], (real)v{store.node});"
        for kind, places, count in (("batch", self.batch, "w.B"), ("column", self.column, "w.B * w.C")):
            mine = [i for i in now if self.kinds[i] == kind]
            if mine or self._stores(phase, kind):
                yield from self._small_loop(phase, kind, mine, places, count)
        ended = self.sums(phase, "scalar")
        if ended:
            yield f"  w.partial.fill(w.threads * {len(ended)}, 0.0);"
            for k in (k for k, i in enumerate(ended) if self.nodes[i].op == "amax"):
                yield f"  for (int t = 0; t < w.threads; ++t) w.partial[t * {len(ended)} + {k}] = -INFINITY;"
        ended = self.sums(phase, "column", "batch")
        if ended:
            lengths = " + ".join("w.B * w.C" if self.kinds[i] == "column" else "w.B" for i in ended)
            yield f"  w.sums.fill(w.copies() * ({lengths}), 0.0);"
            for i in (i for i in ended if self.nodes[i].op == "amax"):
                length = "w.B * w.C" if self.kinds[i] == "column" else "w.B"
                yield f"  filled<double>(w.sums.entries + {self._sum_place(i)}, w.copies() * {length}, -INFINITY);"
        if self.row and phase == 0:
            yield f"  w.row.make_room({len(self.row)} * w.B * w.R);"
        yield "}"

    def _stores(self, phase: int, kind: str) -> list[Store]:
        return [s for s in self.program.stores if s.time[0] == phase and self.kinds[s.node] == kind]

    def _size(self, labels: tuple[int, ...]) -> str:
        letters = {1: "C", 2: "RC", 3: "BRC"}[self.program.axes]
        return " * ".join(f"w.{x}" for x, m in zip(letters, self.program.merged, strict=True) if set(m) & set(labels))

    def _small_loop(self, phase: int, kind: str, mine: list[int], places: dict[int, int], count: str) -> Iterator[str]:
        """A loop over batches, or over the columns of all batches."""
        yield f"  w.{kind}.make_room({len(places)} * {count});"
        for i in (i for i in mine if self.nodes[i].op in REDUCTIONS):
            # The threads' sums in the place of the first one's.
            yield f"  double* const total{i} = w.sums.entries + {self._sum_place(i)};"
            yield f"  for (i64 k = 1; k < w.copies(); ++k) for (i64 j = 0; j < {count}; ++j)"
            yield "    " + self._join(i, f"total{i}[j]", f"total{i}[k * {count} + j]", "double")
        yield "#pragma omp simd"
        yield f"  for (i64 j = 0; j < {count}; ++j) {{"
        read = {a for i in mine for a in self.nodes[i].args} | {s.node for s in self._stores(phase, kind)}
        if kind == "column":
            for i in sorted(a for a in read if self.kinds[a] == "batch"):
                yield f"    const real v{i} = w.batch[{self.batch[i]} * w.B + j / w.C];"
        for i in sorted(a for a in read if self.kinds[a] == kind and a not in mine):
            yield f"    const real v{i} = w.{kind}[{places[i]} * {count} + j];"
        for i in mine:
            node = self.nodes[i]
            if node.op == "load":
                yield f"    const real v{i} = get({self._pointer(node.value)}[j]);"
            elif node.op in REDUCTIONS:
                yield f"    const real v{i} = (real)total{i}[j];"
            else:
                yield "    " + self._define(i, "real")
            if i in places:
                yield f"    w.{kind}[{places[i]} * {count} + j] = v{i};"
        for store in self._stores(phase, kind):
            yield f"    put({self._pointer(store.position)}[j], v{store.node});"
        yield "  }"

    # -- passes over memory -------------------------------------------------------------------------------------

    def pass_lines(self, phase: int) -> Iterator[str]:
        """The function `pass<phase>`, which walks through a part of a tensor."""
        raise NotImplementedError

    def units(self) -> str:
        """How many units a tensor `w` has, of which every thread gets its share."""
        raise NotImplementedError

    def _head(self, phase: int, name: str = "pass") -> Iterator[str]:
        yield f"static void {name}{phase}(Work& w, const double* u, i64 first, i64 last, int thread) {{"
        yield "  (void)u; (void)thread;"
        yield from self._uniforms()
        yield from self._owns(phase)

    def _put_down_totals(self, totals: list[int]) -> Iterator[str]:
        """The end of a pass: a thread's sums over its part of a tensor are put down."""
        for k, i in enumerate(totals):
            yield "  " + self._join(i, f"w.partial[thread * {len(totals)} + {k}]", f"s{i}", "double")
        yield "}"

    def _arrays(self, time: Time, stores: Iterable[Store], offset: str) -> Iterator[str]:
        """Pointers to what a loop reads and writes."""
        used = sorted({*self.program.reads(time).values(), *(s.position for s in stores)})
        for index in used:
            slot = self._slot(index)
            if not slot.coded:
                yield f"{self._type(slot)}* const p{index} = {self._pointer(index)} + {offset};"
        if PARAM in used and self.layout.has_rest:
            kinds = {"remainder8": "int8_t", "remainder16": "int16_t"}
            kind = kinds.get(self.layout.rounding, self._type(self._slot(PARAM)))
            yield f"{kind}* const rest = ({kind}*)w.at[{self.layout.tensors - 1}] + {offset};"

    def _body(self, time: Time, roots: list[int]) -> Iterator[str]:
        """The statements of the innermost loop, whose index is `i`."""
        order, leaves = self.program.expand(time, roots)
        for leaf, index in self.program.reads(time).items():
            yield f"const real v{leaf} = {self._read(index)};"
        for leaf in sorted(leaf for leaf in leaves if self.kinds[leaf] == "column"):
            yield f"const real v{leaf} = column{leaf}[i];"
        for i in order:
            yield self._define(i, "real")

    def _read(self, index: int) -> str:
        if self._slot(index).coded:
            return f"old{index}[i]"
        if index == PARAM and self.layout.rounding.startswith("remainder"):
            return f"joined(p{index}[i], rest[i])"
        if index == PARAM and self.layout.rounding == "kahan_read":
            return f"get(p{index}[i]) + get(rest[i])"
        return f"get(p{index}[i])"

    def _write(self, store: Store, entry: str) -> Iterator[str]:
        """Store a full node; `entry` is the entry's number in its tensor."""
        index, value, slot = store.position, f"v{store.node}", self._slot(store.position)
        rounding = self.layout.rounding
        if slot.coded:
            yield f"new{index}[i] = {value};"
        elif index == PARAM and rounding.startswith("kahan"):
            yield f"const real whole = {value}{'' if self.layout.rest_is_read else ' + get(rest[i])'};"
            yield f"put(p{index}[i], whole);"
            yield f"put(rest[i], whole - get(p{index}[i]));"
        elif index == PARAM and rounding.startswith("remainder"):
            yield f"split(p{index}[i], rest[i], {value});"
        elif slot.stochastic:
            yield f"put_stochastic(p{index}[i], {value}, hashed((u32)({entry}), seed{index}));"
        else:
            yield f"put(p{index}[i], {value});"

    def _seeds(self, stores: Iterable[Store]) -> Iterator[str]:
        for store in stores:
            slot = self._slot(store.position)
            if slot.stochastic:
                yield f"  const u32 seed{store.position} = salted(w.seed, {slot.salt}u);"

    def _entry(self) -> Iterator[str]:
        yield 'extern "C" void step(i64 tensors, const i64* sizes, void* const* table, const double* h,'
        yield "                     const u32* seeds, int threads, double* results) {"
        yield "  static thread_local Buffer<Work> works;"
        yield "  works.make_room(tensors);"
        yield f"  double u[{max(1, len(self.uniform))}]; (void)h;"
        for place, i in enumerate(self.uniform):
            node = self.nodes[i]
            if node.op == "scalar":
                yield f"  const double v{i} = h[{self.scalars.index(node.value)}];"
            else:
                yield "  " + self._define(i, "double")
            yield f"  u[{place}] = v{i};"
        yield "  for (i64 t = 0; t < tensors; ++t) {"
        yield "    Work& w = works[t];"
        yield "    w.B = sizes[t * 5]; w.R = sizes[t * 5 + 1]; w.C = sizes[t * 5 + 2];"
        yield "    w.code_rows = sizes[t * 5 + 3]; w.code_columns = sizes[t * 5 + 4];"
        yield f"    w.at = table + t * {self.layout.tensors}; w.seed = seeds[t]; w.threads = threads;"
        yield f"    w.own.make_room({max(1, len(self.own))});"
        yield "  }"
        single = self.program.phases == 1
        yield "  for (i64 begin = 0; begin < tensors;) {"
        yield "    i64 end = begin, entries = 0;"
        yield "    do { entries += works[end].B * works[end].R * works[end].C; ++end; }"
        fits = "" if single else f" && entries + works[end].B * works[end].R * works[end].C <= {GROUP}"
        yield f"    while (end < tensors{fits});"
        for phase in range(self.program.phases):
            yield f"    for (i64 t = begin; t < end; ++t) before{phase}(works[t], u);"
            if not self.program.walks(phase):
                continue
            yield "    share(works.entries + begin, end - begin, threads,"
            yield f"      [](const Work& w) {{ return {self.units()}; }},"
            yield "      [&](Work& w, i64 first, i64 last, int thread) {"
            yield f"        pass{phase}(w, u, first, last, thread); }});"
        for place, i in enumerate(self.program.results):
            value = f"u[{self.uniform.index(i)}]" if i in self.uniform else f"works[t].own[{self.own[i]}]"
            yield f"    for (i64 t = begin; t < end; ++t) results[{place}] += {value};"
        yield "    begin = end;"
        yield "  }"
        yield "}"
