"""Kernels for matrices of short rows, such as adapters of 4096 x 8: many rows are walked through as one run of entries.

A loop over eight entries ends before it has begun to pay. So tiles of rows are taken together: values of rows are
computed for a tile at once, spread over its entries, and what is summed along rows and columns is put down first.
"""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.engine.codegen.cpp.writer import Writer
from hfoptim.engine.codegen.schedule import Time
from hfoptim.engine.codegen.trace import REDUCTIONS

# Columns up to which rows are short, and entries of a tile.
NARROW = 64
TILE = 1024
# Rows summed in the rule's own precision, column by column, before the sums go on in double: here and in other rows.
HELD_ROWS = 256


class NarrowWriter(Writer):
    """Tiles of short rows, without batches."""

    def narrow_lines(self, phase: int) -> Iterator[str]:
        """The function `narrow<phase>`, which walks through a part of a tensor."""
        totals, columns = self.sums(phase, "scalar"), self.sums(phase, "column")
        all_stores = [s for s in self.program.stores if s.time[0] == phase]
        times = [(phase, sub) for sub in range(self.program.subs(phase))]
        yield from self._head(phase, "narrow")
        yield from self._seeds(s for s in all_stores if self.kinds[s.node] == "full")
        yield "  const i64 C = w.C, copy = w.copies() == 1 ? 0 : thread; (void)copy;"
        yield "  i64 tile = 1;"
        yield f"  while (tile < {HELD_ROWS} && 2 * tile * C <= {TILE}) tile *= 2;"
        yield from (f"  double s{i} = {self._start(i)};" for i in totals)
        for i in columns:
            yield f"  real held{i}[{NARROW}];"
            yield f"  filled<real>(held{i}, C, {self._start(i)});"
        for i in self._row_values(phase):
            yield f"  real row{i}[{HELD_ROWS}];"
        leaves = {leaf for time in times for leaf in self.program.expand(time, self.program.roots(time))[1]}
        for i in sorted(leaf for leaf in leaves if self.kinds[leaf] in ("row", "column")):
            name = f"column{i}" if self.kinds[i] == "column" else f"spread{i}"
            yield f"  alignas(64) real {name}[{TILE}];"
            if self.kinds[i] == "column":
                yield f"  spread_columns(w.column.entries + {self.column[i]} * C, tile, C, {name});"
        for i in sorted({self.nodes[i].args[0] for time in times for i in self._along(time)}):
            yield f"  alignas(64) real term{i}[{TILE}];"
        yield "  i64 count = 0; (void)count;"
        yield "  for (i64 r = first; r < last; r += tile) {"
        yield "    const i64 rows = least(tile, last - r), n = rows * C, base = r * C; (void)n; (void)base;"
        for i, place in self.row.items():
            if self.times[i][0] < phase:
                yield f"    copied(w.row.entries + {place} * w.R + r, rows, row{i});"
        for time in times:
            yield from self._row_definitions(time)
            yield from self._tile(time)
        for i in self.row:
            if self.times[i][0] == phase:
                yield f"    copied(row{i}, rows, w.row.entries + {self.row[i]} * w.R + r);"
        for store in all_stores:
            if self.kinds[store.node] == "row":
                to = self._pointer(store.position)
                yield f"    for (i64 k = 0; k < rows; ++k) put({to}[r + k], row{store.node}[k]);"
        for i in totals:
            source = self.nodes[i].args[0]
            if self.kinds[source] == "row":
                yield f"    double t{i} = {self._start(i)};"
                clause = self._clause(i, "t") if self.nodes[i].op == "sum" else ""  # `largest` is of `real`
                yield from [f"#pragma omp simd {clause}"] if clause else []
                yield f"    for (i64 k = 0; k < rows; ++k) {self._join(i, f't{i}', f'row{source}[k]', 'double')}"
                yield "    " + self._join(i, f"s{i}", f"t{i}", "double")
        if columns:
            yield f"    if ((count += rows) == {HELD_ROWS} || r + rows == last) {{"
            yield from self._put_down(columns, "copy * C", "C")
        yield "  }"
        yield from self._put_down_totals(totals)

    def _put_down(self, columns: list[int], begin: str, count: str) -> Iterator[str]:
        """Add what is held of columns to their sums, and close the block that asks whether it is time.

        Args:
            columns: their reductions.
            begin: where among the sums of one reduction this thread's begin.
            count: how many columns there are.
        """
        for i in columns:
            joined = self._join(i, f"w.sums[{self._sum_place(i)} + {begin} + i]", f"held{i}[i]", "double")
            yield f"      for (i64 i = 0; i < {count}; ++i) {{ {joined} held{i}[i] = {self._start(i)}; }}"
        yield "      count = 0;"
        yield "    }"

    def _along(self, time: Time) -> list[int]:
        """Reductions of full values along rows and columns."""
        return [i for i in self.program.reductions(time, "full") if self.kinds[i] != "scalar"]

    def _row_values(self, phase: int) -> list[int]:
        """Values of rows that are read or computed in a phase."""
        earlier = [i for i in self.row if self.times[i][0] < phase]
        return earlier + [i for i in self.live if self.kinds[i] == "row" and self.times[i][0] == phase]

    def _row_definitions(self, time: Time) -> Iterator[str]:
        """Values of a tile's rows that can be computed once its earlier walks are done."""
        mine = [i for i in self.live if self.kinds[i] == "row" and self.times[i] == time]
        computed = [i for i in mine if self.nodes[i].op not in REDUCTIONS]
        if not computed:
            return
        read_later = self._read_by_other_loops() | {*self.row} | {s.node for s in self.program.stores}
        read_later |= {a for i in self.live if self.times[i] > time for a in self.nodes[i].args}
        read = {a for i in computed for a in self.nodes[i].args if self.kinds[a] == "row"} - {*computed}
        yield "#pragma omp simd"
        yield "    for (i64 k = 0; k < rows; ++k) {"
        yield from (f"      const real v{i} = row{i}[k];" for i in sorted(read))
        for i in computed:
            node = self.nodes[i]
            if node.op == "load":
                yield f"      const real v{i} = get({self._pointer(node.value)}[r + k]);"
            else:
                yield "      " + self._define(i, "real")
            if i in read_later:
                yield f"      row{i}[k] = v{i};"
        yield "    }"

    def _tile(self, time: Time) -> Iterator[str]:
        """The loop over a tile's entries, and the sums of what it has put down."""
        roots = self.program.roots(time)
        if not roots:
            return
        stores = self.program.stored(time, "full")
        leaves = self.program.expand(time, roots)[1]
        along = self._along(time)
        totals = [i for i in self.program.reductions(time, "full") if self.kinds[i] == "scalar"]
        yield "    {"
        yield from ("    " + line for line in self._arrays(time, stores, "base"))
        for i in sorted(leaf for leaf in leaves if self.kinds[leaf] == "row"):
            yield f"    spread_rows(row{i}, rows, C, spread{i});"
        yield from (f"    real a{i} = {self._start(i)};" for i in totals)
        yield f"#pragma omp simd{''.join(f' {self._clause(i)}' for i in totals)}"
        yield "    for (i64 i = 0; i < n; ++i) {"
        yield from (f"      const real v{i} = spread{i}[i];" for i in sorted(leaves) if self.kinds[i] == "row")
        yield from ("      " + line for line in self._body(time, roots))
        for store in stores:
            yield from ("      " + line for line in self._write(store, "base + i"))
        yield from (f"      term{i}[i] = v{i};" for i in sorted({self.nodes[i].args[0] for i in along}))
        yield from ("      " + self._join(i, f"a{i}", f"v{self.nodes[i].args[0]}", "real") for i in totals)
        yield "    }"
        yield from ("    " + self._join(i, f"s{i}", f"a{i}", "double") for i in totals)
        for i in along:
            to = f"row{i}" if self.kinds[i] == "row" else f"held{i}"
            yield f"    {self.nodes[i].op}_to_{self.kinds[i]}s(term{self.nodes[i].args[0]}, rows, C, {to});"
        yield "    }"
