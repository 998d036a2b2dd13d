"""Kernels that see a tensor as rows of columns, in batches if need be: reductions along rows and columns."""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.engine.codegen.cpp.narrow import HELD_ROWS, NARROW, NarrowWriter
from hfoptim.engine.codegen.cpp.writer import SPAN
from hfoptim.engine.codegen.schedule import Store, Time
from hfoptim.engine.codegen.trace import REDUCTIONS


class RowWriter(NarrowWriter):
    """Rows, one after the other; short ones together."""

    def pass_lines(self, phase: int) -> Iterator[str]:
        narrow = self.program.axes == 2
        if narrow:
            yield from self.narrow_lines(phase)
        totals, batches = self.sums(phase, "scalar"), self.sums(phase, "batch")
        columns = self.sums(phase, "column")
        subs = self.program.subs(phase)
        yield from self._head(phase)
        if narrow:
            yield f"  if (w.C <= {NARROW}) return narrow{phase}(w, u, first, last, thread);"
        yield "  if (w.copies() == 1 && w.B > 1) { first *= w.R; last *= w.R; }  // whole batches"
        all_stores = [s for s in self.program.stores if s.time[0] == phase]
        yield from self._seeds(s for s in all_stores if self.kinds[s.node] == "full")
        yield from (f"  double s{i} = {self._start(i)};" for i in totals)
        yield "  const i64 copy = w.copies() == 1 ? 0 : thread; (void)copy;"
        if columns:
            yield "  static thread_local Buffer<real> held;"
            yield f"  held.fill({len(columns)} * w.C, 0);"
            yield from (f"  real* const held{i} = held.entries + {k} * w.C;" for k, i in enumerate(columns))
            yield from (f"  filled<real>(held{i}, w.C, -INFINITY);" for i in columns if self.nodes[i].op == "amax")
            yield "  i64 count = 0;"
        yield "  for (i64 r = first; r < last; ++r) {"
        yield "    const i64 b = r / w.R, base = r * w.C; (void)b;"
        yield from self._earlier_values(phase)
        for i in self.live:
            if self._along_row(i) and self.times[self.nodes[i].args[0]][0] == phase:
                yield f"    double r{i} = {self._start(i)};"
        for sub in range(subs):
            time = (phase, sub)
            yield from self._definitions(time)
            roots = self.program.roots(time)
            if not roots:
                continue
            stores = self.program.stored(time, "full")
            yield "    {"
            yield from ("    " + line for line in self._arrays(time, stores, "base"))
            used = self.program.expand(time, roots)[1]
            for i in sorted(leaf for leaf in used if self.kinds[leaf] == "column"):
                yield f"    const real* const column{i} = w.column.entries + {self.column[i]} * w.B * w.C + b * w.C;"
            yield from self._row_loop(time, stores)
            yield "    }"
        for i in self.row:
            if self.times[i][0] == phase:
                yield f"    w.row[{self.row[i]} * w.B * w.R + r] = v{i};"
        for store in all_stores:
            if self.kinds[store.node] == "row":
                yield f"    put({self._pointer(store.position)}[r], v{store.node});"
        for i in totals:
            if self.kinds[self.nodes[i].args[0]] == "row":
                yield "    " + self._join(i, f"s{i}", f"v{self.nodes[i].args[0]}", "double")
        for i in batches:
            source = self.nodes[i].args[0]
            value = f"v{source}" if self.kinds[source] == "row" else f"r{i}"
            yield "    " + self._join(i, f"w.sums[{self._sum_place(i)} + copy * w.B + b]", value, "double")
        if columns:
            yield f"    if (++count == {HELD_ROWS} || r + 1 == last || (r + 1) % w.R == 0) {{"
            yield from self._put_down(columns, "(copy * w.B + b) * w.C", "w.C")
        yield "  }"
        yield from self._put_down_totals(totals)

    def _along_row(self, i: int) -> bool:
        """Whether node `i` reduces full values to one of the row or of the batch."""
        node = self.nodes[i]
        return node.op in REDUCTIONS and self.kinds[node.args[0]] == "full" and self.kinds[i] in ("row", "batch")

    def _earlier_values(self, phase: int) -> Iterator[str]:
        """Values of the row and of its batch that were computed before this phase."""
        for i, place in self.batch.items():
            if self.times[i][0] <= phase:
                yield f"    const real v{i} = w.batch[{place} * w.B + b]; (void)v{i};"
        for i, place in self.row.items():
            if self.times[i][0] < phase:
                yield f"    const real v{i} = w.row[{place} * w.B * w.R + r]; (void)v{i};"

    def _definitions(self, time: Time) -> Iterator[str]:
        """Values of the row that can be computed once its earlier walks are done."""
        for i in self.live:
            if self.kinds[i] != "row" or self.times[i] != time:
                continue
            node = self.nodes[i]
            if node.op == "load":
                yield f"    const real v{i} = get({self._pointer(node.value)}[r]);"
            elif node.op in REDUCTIONS:
                yield f"    const real v{i} = (real)r{i};"
            else:
                yield "    " + self._define(i, "real")

    def _row_loop(self, time: Time, stores: list[Store]) -> Iterator[str]:
        """The innermost loop over a row, in spans; sums along it are left in `r<node>`."""
        reductions = self.program.reductions(time, "full")
        columns = [i for i in reductions if self.kinds[i] == "column"]
        others = [i for i in reductions if self.kinds[i] != "column"]
        yield f"      for (i64 from = 0; from < w.C; from += {SPAN}) {{"
        yield f"        const i64 to = least(from + {SPAN}, w.C);"
        yield from (f"        real a{i} = {self._start(i)};" for i in others)
        clause = "".join(f" {self._clause(i)}" for i in others)
        yield f"#pragma omp simd{clause}"
        yield "        for (i64 i = from; i < to; ++i) {"
        yield from ("          " + line for line in self._body(time, self.program.roots(time)))
        for store in stores:
            yield from ("          " + line for line in self._write(store, "base + i"))
        yield from ("          " + self._join(i, f"a{i}", f"v{self.nodes[i].args[0]}", "real") for i in others)
        for i in columns:
            yield "          " + self._join(i, f"held{i}[i]", f"v{self.nodes[i].args[0]}", "real")
        yield "        }"
        for i in others:
            yield "        " + self._join(i, f"s{i}" if self.kinds[i] == "scalar" else f"r{i}", f"a{i}", "double")
        yield "      }"

    def units(self) -> str:
        return "w.copies() == 1 && w.B > 1 ? w.B : w.B * w.R"
