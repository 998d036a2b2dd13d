"""Triton from programs that see a tensor as rows of columns, in batches if need be: reductions along rows and columns.

One program takes a tile: some rows of one batch, column by column as many as it holds at a time. A sum along a row ends
within the tile, whose rows may then be walked again; of a sum down the columns every tile leaves its part in `vectors`.
Between two passes `lines` adds up the columns of each batch, some at a time. Each of its programs works out the
tensor's own scalars by itself, which saves a launch: they have a number per tile, where every column has one, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from hfoptim.engine.codegen.layout import Layout
from hfoptim.engine.codegen.schedule import Program, Store, Time
from hfoptim.engine.codegen.trace import REDUCTIONS
from hfoptim.engine.codegen.triton.writer import KEPT, SUMS, Cut, Writer, expression
from hfoptim.engine.operators import BOOLEAN

# Entries of a tile at a time.
TILE = 2048
# As `writer.MOST_NEEDED`: what a walk knows of rows and columns needs registers beside.
MOST_NEEDED_IN_ROWS = 7.5
# Above that 4 entries take more than the 128 registers that 16 warps leave each thread, in double precision, too: tiles
# are half as high, and 8 warps take them. Of a pass that walks rows more than once the count is about a third too high.
MOST_NEEDED_IN_TILES = 16
# Columns that a program of `lines` takes, and parts of their sums that it adds up at a time.
PART, PARTS = 32, 64
# Parts of the sum of a batch that are added up at a time.
BATCH_PARTS = 256


def tile_of(height: int, columns: int) -> tuple[int, int]:
    """(rows, columns) that suit matrices of so many.

    Columns lie next to each other in memory, so a tile is as wide as short rows are; long rows, of which few may be
    there, go to many programs.
    """
    if columns >= 128:
        return (2, 1024) if height < 16 or columns >= 8192 else (16, 128)
    width = max(4, 1 << (columns - 1).bit_length())
    return TILE // width, width


class RowWriter(Writer):
    """Rows and columns."""

    def __init__(
        self,
        program: Program,
        layout: Layout,
        scalars: tuple[str, ...],
        tensor_scalars: frozenset[str],
        tile: tuple[int, int],
    ) -> None:
        super().__init__(program, layout, scalars, tensor_scalars)
        down, along = tile
        once = [phase for phase in range(program.phases) if program.subs(phase) == 1]
        if max(map(self._needed, once), default=0.0) > MOST_NEEDED_IN_TILES:
            down = max(1, down // 2)
        self.tile = self.down, self.along = down, along
        # A state of a batch is read before anything is stored, and kept for all who ask later.
        self.batch = {i: place for place, i in enumerate(i for i in self.live if self.kinds[i] == "batch")}
        self.column_sums = max(len(self.sums(phase, "column")) for phase in range(program.phases))

    def cut(self, shape: tuple[int, int, int]) -> Cut:
        batches, height, columns = shape
        tiles = -(-height // self.down)
        of_columns = len(self.column) + self.column_sums * tiles
        kept = batches * (columns * of_columns + len(self.batch) + height * len(self.row))
        return Cut(math.prod(shape), batches * tiles, batches * -(-columns // PART), kept, (height, columns, tiles, 1))

    def _phase(self, phase: int) -> Iterator[str]:
        yield from super()._phase(phase)
        if self._has_lines(phase):
            yield from self._function(f"lines{phase}", "line", self._lines(phase), warps=8)

    def _warps(self, phase: int) -> int:
        # As blocks, with 8 or 4 entries for a thread; a tile has twice as many, or as many.
        most = 16 if self.down * self.along >= TILE else 8
        return most if self._needed(phase) > self._wide * MOST_NEEDED_IN_ROWS else most // 2

    def _factors(self) -> dict[int, int | None]:
        factors = super()._factors()
        return {} if any(factor is not None for factor in factors.values()) else factors

    def _folded(self, phase: int) -> bool:
        return not self._has_lines(phase) and super()._folded(phase)

    def _joins(self, phase: int) -> bool:
        return self._has_lines(phase) and self.program.walks(phase)

    def _size(self, labels: tuple[int, ...]) -> str:
        # (batches,) rows, columns
        letters = ("batches", "height", "columns")[-self.program.axes :]
        named = [name for name, merged in zip(letters, self.program.merged, strict=True) if set(merged) & set(labels)]
        sizes = {
            "batches": f"{self._column('blocks')} // {self._column('tiles')}",
            "height": self._column("height"),
            "columns": self._column("columns"),
        }
        return " * ".join(f"({sizes[name]})" for name in named)

    # -- where vectors are --------------------------------------------------------------------------------------

    def _frame(self) -> Iterator[str]:
        """The sizes of a tensor, and where its values of columns, batches and rows begin."""
        yield f"height = {self._column('height')}"
        yield f"columns = {self._column('columns')}"
        yield f"tiles = {self._column('tiles')}"
        yield f"batches = {self._column('blocks')} // tiles"
        yield f"of_columns = vectors + {self._column('vector')}"
        yield f"of_batches = of_columns + batches * columns * {len(self.column)}"
        yield f"of_rows = of_batches + batches * {len(self.batch)}"
        yield f"of_tiles = of_rows + batches * height * {len(self.row)}"

    def _column_place(self, i: int, columns: str) -> str:
        return f"of_columns + ({self.column[i]} * batches + batch) * columns + {columns}"

    def _batch_place(self, i: int) -> str:
        return f"of_batches + {self.batch[i]} * batches + batch"

    def _row_place(self, i: int) -> str:
        return f"of_rows + {self.row[i]} * batches * height + line"

    def _part_place(self, i: int, tile: str, columns: str) -> str:
        """Of the sum of columns `i` what a tile has left."""
        place = self.sums(self.times[i][0] - 1, "column").index(i)
        return f"of_tiles + (({tile}) * {self.column_sums} + {place}) * columns + {columns}"

    def _from_vectors(self, i: int, place: str, mask: str = "") -> str:
        return f"tl.load({place}{mask}){' != 0' if self.nodes[i].op in BOOLEAN else ''}"

    def _computed(self, i: int, place: str, mask: str = "") -> str:
        """The value of a row, column or batch: what its operation gives, or a state's entry at its place."""
        node = self.nodes[i]
        if node.op != "load":
            return expression(node, self.real)
        return f"tl.load({self._memory(self.layout.slots[node.value])} + {place}{mask}).to({self.real})"

    def _keep(self, store: Store, place: str, mask: str) -> str:
        slot = self.layout.slots[store.position]
        return f"tl.store({self._memory(slot)} + {place}, v{store.node}.to({KEPT[slot.kept]}), mask={mask})"

    def _scalars_of(self, users: Iterable[int]) -> list[int]:
        """The scalars that nodes of other kinds read."""
        return sorted({a for i in users for a in self.nodes[i].args if self.kinds[a] == "scalar"})

    # -- passes over memory -------------------------------------------------------------------------------------

    def _subs(self, phase: int) -> list[Time]:
        return [(phase, sub) for sub in range(self.program.subs(phase))]

    def _pass(self, phase: int) -> Iterator[str]:
        rows = [i for i in self.live if self.kinds[i] == "row" and self.times[i][0] == phase]
        full: list[int] = []
        leaves: set[int] = set()
        for time in self._subs(phase):
            computed, read = self.program.expand(time, self.program.roots(time))
            full += computed
            leaves |= read
        read = {a for i in (*rows, *full) for a in self.nodes[i].args} | leaves
        small = self._reached(read, phase)
        yield "block = tl.program_id(0)"
        yield "tensor = tl.load(owner + block)"
        yield from self._row()
        yield from self._frame()
        yield f"tile = block - {self._column('first')}"
        yield "batch = tile // tiles"
        yield f"top = (tile - batch * tiles) * {self.down}"
        yield f"down = tl.arange(0, {self.down})[:, None]"
        yield f"along = tl.arange(0, {self.along})[None, :]"
        yield "there = top + down < height"
        yield "line = batch * height + top + down"
        yield "base = (batch * height + top) * columns"
        used = sorted({position for time in self._subs(phase) for position in self._used(time)})
        for position in used:
            yield f"t{position} = {self._address(position)}"
        # What is of columns and batches is worked out in the first pass only.
        yield from self._reals(self._scalars_of([*rows, *full, *(small if phase == 0 else ())]), phase)
        yield from self._seed(phase)
        for i in small:
            if self.kinds[i] == "batch":
                yield f"v{i} = {self._batch_value(i, phase)}"
        if phase == 0:
            for i in self.batch:
                if i in small and self.times[i] == (0, 0):
                    yield f"tl.store({self._batch_place(i)}, v{i}.to({self.real}), mask=tile == batch * tiles)"
        for i in sorted(a for a in read if self.kinds[a] == "row" and self.times[a][0] < phase):
            yield f"v{i} = {self._from_vectors(i, self._row_place(i), ', mask=there, other=0')}"
        # In the usual way places in a tile are counted in 32 bits, for which there are registers enough.
        most = (1 << 31) // self.down - self.along
        fitting = f"(columns % {self.along} == 0) & (columns <= {most}) & (top + {self.down} <= height)"
        yield f"if {' & '.join([fitting, *self._aligned(used)])}:"
        yield from ("    " + line for line in self._walks(phase, small, whole=True))
        yield "else:"
        yield from ("    " + line for line in self._walks(phase, small, whole=False))

    def _reached(self, read: Iterable[int], phase: int) -> list[int]:
        """The values of columns and batches that a pass needs; in the first one also what they are made of."""
        found: set[int] = set()
        stack = [i for i in read if self.kinds[i] in ("column", "batch")]
        if phase == 0:
            stack += [i for i in self.batch if self.times[i] == (0, 0)]
        while stack:
            i = stack.pop()
            if i not in found:
                found.add(i)
                if phase == 0:
                    stack += [a for a in self.nodes[i].args if self.kinds[a] in ("column", "batch")]
        return sorted(found)

    def _batch_value(self, i: int, phase: int) -> str:
        if phase > 0:
            return self._from_vectors(i, self._batch_place(i))
        return self._computed(i, "batch")

    def _column_value(self, i: int, phase: int, place: str) -> str:
        mask = f", mask={place} < columns, other=0"
        if phase > 0:
            return self._from_vectors(i, self._column_place(i, place), mask)
        return self._computed(i, f"batch * columns + {place}", mask)

    def _walks(self, phase: int, small: list[int], whole: bool) -> Iterator[str]:
        """The statements that take one tile."""
        for time in self._subs(phase):
            for i in self.live:
                if self.kinds[i] == "row" and self.times[i] == time:
                    yield f"v{i} = {self._row_value(i)}"
            if self.program.roots(time):
                yield from self._walk(time, small, whole)
        for i in self.row:
            if self.times[i][0] == phase:
                yield f"tl.store({self._row_place(i)}, (v{i} + tl.zeros_like(down)).to({self.real}), mask=there)"
        for store in self._stores((phase,), "row"):
            yield self._keep(store, "line", "there")
        for i in self._partial(phase):
            source = self.nodes[i].args[0]
            if self.kinds[source] == "row":
                total = self._reduced(i, f"tl.where(there, v{source}, {self._empty(i)})")
            else:
                total = self._reduced(i, f"a{i}")
            yield f"tl.store(partials + block * {self.most} + {self._partial_place(i)}, {total}.to(tl.float64))"

    def _partial(self, phase: int) -> list[int]:
        return [*self.sums(phase, "scalar"), *self.sums(phase, "batch")]

    def _row_value(self, i: int) -> str:
        if self.nodes[i].op in REDUCTIONS:
            return self._along(i, f"a{i}", 1)
        return self._computed(i, "line", ", mask=there, other=0")

    def _walk(self, time: Time, small: list[int], whole: bool) -> Iterator[str]:
        """One walk along the rows of a tile."""
        reductions = self.program.reductions(time, "full")
        ahead = [i for i in reductions if self.kinds[i] != "column"]
        for i in ahead:
            yield f"a{i} = tl.full(({self.down}, {self.along}), {self._empty(i)}, {self.real})"
        if whole:
            # A product with the width of a tile: then the compiler knows that every row is aligned as the first is.
            yield f"width = (columns // {self.along} * {self.along}).to(tl.int32)"
            yield f"for left in range(0, width, {self.along}):"
        else:
            yield f"for start in range(0, columns, {self.along}):"
        yield from ("    " + line for line in self._columns_at_a_time(time, small, ahead, whole))

    def _columns_at_a_time(self, time: Time, small: list[int], ahead: list[int], whole: bool) -> Iterator[str]:
        # What both branches have by one name would have to be of one type.
        place = "near" if whole else "far"
        if whole:
            yield "near = left + along"
            yield "near_at = down * width + near"
        else:
            yield "far = start + along"
            yield "far_at = down * columns + far"
            yield "live = there & (far < columns)"
        needed = set(self._reached(self.program.expand(time, self.program.roots(time))[1], time[0]))
        for i in small:
            if self.kinds[i] == "column" and i in needed:
                yield f"v{i} = {self._column_value(i, time[0], place)}"
        yield from self._entries(time, whole)
        for i in self.program.reductions(time, "full"):
            value = f"v{self.nodes[i].args[0]}"
            if not whole:
                value = f"tl.where(live, {value}, {self._empty(i)})"
            if i in ahead:
                yield self._joined(i, value)
                continue
            there = self._part_place(i, "tile", place)
            yield f"tl.store({there}, {self._along(i, value, 0)}, mask={place} < columns)"

    def _at(self, whole: bool) -> str:
        return "near_at" if whole else "far_at"

    def _entry(self, whole: bool) -> str:
        return f"base + {self._at(whole)}"

    def _along(self, i: int, value: str, axis: int) -> str:
        """Reduction `i` of a tile along one of its axes, which stays as one of size 1."""
        if self.nodes[i].op == "sum":
            return f"tl.sum({value}, axis={axis}, keep_dims=True)"
        return f"largest_along({value}, {axis})"

    # -- between passes -----------------------------------------------------------------------------------------

    def _lines_now(self, phase: int) -> list[int]:
        """The values of columns and batches that are known once a phase is over."""
        kinds, phases = ("column", "batch"), self._after(phase)
        found = [i for i in self.live if self.kinds[i] in kinds and self.times[i][0] in phases]
        # Those of batches are there from the first pass on.
        return [i for i in found if self.kinds[i] == "column" or self.times[i] != (0, 0)]

    def _line_stores(self, phase: int) -> list[Store]:
        return self._stores(self._after(phase), "column", "batch")

    def _has_lines(self, phase: int) -> bool:
        last = phase + 1 == self.program.phases
        return bool(self._line_stores(phase) or (self._lines_now(phase) and not last))

    def _lines(self, phase: int) -> Iterator[str]:
        """Some columns of a batch: what its tiles have left is added up, and the values of columns follow."""
        now, stores = self._lines_now(phase), self._line_stores(phase)
        yield "piece = tl.program_id(0)"
        yield "tensor = tl.load(lines + piece)"
        yield from self._row()
        yield from self._frame()
        yield f"piece = piece - {self._column('line')}"
        yield f"parts = (columns + {PART - 1}) // {PART}"
        yield "batch = piece // parts"
        yield f"start = (piece - batch * parts) * {PART}"
        yield f"along = tl.arange(0, {PART})[None, :]"
        yield "there = start + along < columns"
        yield from self._added(phase, SUMS)
        yield from self._settled(self._scalars_of(now), *self._between(phase), opens="piece == 0")
        read = {a for i in now for a in self.nodes[i].args} | {s.node for s in stores}
        for i in sorted(a for a in read if a not in now and self.kinds[a] in ("column", "batch")):
            if self.kinds[i] == "batch":
                yield f"v{i} = {self._from_vectors(i, self._batch_place(i))}"
            else:
                place = self._column_place(i, "start + along")
                yield f"v{i} = {self._from_vectors(i, place, ', mask=there, other=0')}"
        for i in now:
            yield from self._line_value(i)
            if self.kinds[i] == "batch":
                yield f"tl.store({self._batch_place(i)}, v{i}.to({self.real}), mask=start == 0)"
            elif i in self.column:
                kept = f"(v{i} + tl.zeros_like(along)).to({self.real})"
                yield f"tl.store({self._column_place(i, 'start + along')}, {kept}, mask=there)"
        for store in stores:
            if self.kinds[store.node] == "batch":
                yield self._keep(store, "batch", "start == 0")
            else:
                yield self._keep(store, "batch * columns + start + along", "there")

    def _line_value(self, i: int) -> Iterator[str]:
        node = self.nodes[i]
        if node.op not in REDUCTIONS:
            yield f"v{i} = {self._computed(i, 'batch * columns + start + along', ', mask=there, other=0')}"
            return
        empty = self._empty(i)
        if self.kinds[i] == "batch":
            place = self._partial_place(i)
            size, step = f"({BATCH_PARTS},)", BATCH_PARTS
            yield f"at = tl.arange(0, {BATCH_PARTS})"
            there = f"partials + ({self._column('first')} + batch * tiles + k + at) * {self.most} + {place}"
            mask, whole = "k + at < tiles", self._reduced(i, f"a{i}")
        else:
            size, step = f"({PARTS}, {PART})", PARTS
            yield f"down = tl.arange(0, {PARTS})[:, None]"
            there = self._part_place(i, "batch * tiles + k + down", "start + along")
            mask = "(k + down < tiles) & there"
            whole = self._along(i, f"a{i}", 0)
        yield f"a{i} = tl.full({size}, {empty}, tl.float64)"
        yield f"for k in range(0, tiles, {step}):"
        loaded = f"tl.load({there}, mask={mask}, other={empty}).to(tl.float64)"
        yield f"    {self._joined(i, loaded)}"
        yield f"v{i} = {whole}.to({self.real})"
