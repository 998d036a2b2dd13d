"""Flat programs with state in codes: a block is a number of rows, each a block of codes with its scale."""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.engine.codegen.layout import Layout, Slot
from hfoptim.engine.codegen.schedule import Program, Store
from hfoptim.engine.codegen.triton.codes import CELLS, least, values
from hfoptim.engine.codegen.triton.writer import BLOCK, Cut, Writer


class CodedWriter(Writer):
    """Decode, step, encode.

    Blocks of codes run along the rows of a matrix (`storage.formats.matrix_shape`), and the last one of each may be
    shorter. Where none is, the entries of a program are one run of memory.
    """

    def __init__(
        self, program: Program, layout: Layout, scalars: tuple[str, ...], tensor_scalars: frozenset[str]
    ) -> None:
        super().__init__(program, layout, scalars, tensor_scalars)
        self.code_block = layout.block
        self.rows = BLOCK // layout.block
        self.codes = tuple(sorted({slot.kept for slot in layout.slots if slot.coded}))

    def cut(self, shape: tuple[int, int, int]) -> Cut:
        _, rows, columns = shape
        units = rows * -(-columns // self.code_block)
        return self._in_runs(rows * columns, -(-units // self.rows), rows, columns)

    def _frame(self) -> Iterator[str]:
        yield from super()._frame()
        yield f"columns = {self._column('columns')}"

    def _blocks(self) -> str:
        size = self.code_block
        return f"({self._column('height')} * ((columns + {size - 1}) // {size}) + {self.rows - 1}) // {self.rows}"

    def _place(self, number: str) -> Iterator[str]:
        yield f"unit = {number} * {self.rows}"

    def _whole(self) -> list[str]:
        return [*self._always_whole(), f"((unit + {self.rows}) * {self.code_block} <= entries)"]

    def _always_whole(self) -> list[str]:
        return [f"(columns % {self.code_block} == 0)"]

    def _tile(self, whole: bool) -> Iterator[str]:
        rows, size = self.rows, self.code_block
        down, along, halves = f"tl.arange(0, {rows})", f"tl.arange(0, {size})", f"tl.arange(0, {size // 2})"
        packed = any(kept.startswith("4bit") for kept in self.codes)
        if whole:
            yield f"base = unit * {size}"
            yield f"place = {down}"
            yield f"at = {down}[:, None] * {size} + {along}[None, :]"
            if packed:
                yield f"half = {down}[:, None] * {size // 2} + {halves}[None, :]"
            return
        yield f"per_line = (columns + {size - 1}) // {size}"
        yield f"places = unit + {down}"
        yield "line = places // per_line"
        yield f"column = (places - line * per_line) * {size}"
        yield "there = places < entries // columns * per_line"
        yield f"count = tl.where(there, tl.minimum(columns - column, {size}), 0)"
        yield f"spread = (line * columns + column)[:, None] + {along}[None, :]"
        yield f"live = {along}[None, :] < count[:, None]"
        if packed:
            yield f"halves = (line * ((columns + 1) // 2) + column // 2)[:, None] + {halves}[None, :]"
            yield f"live_half = {halves}[None, :] < ((count + 1) // 2)[:, None]"

    def _entry(self, whole: bool) -> str:
        return "base + at" if whole else "spread"

    def _at(self, whole: bool) -> str:
        # Other names: Triton wants one type for a name in both branches, and these are numbers of 64 bits.
        return "at" if whole else "spread"

    def _pointer(self, position: int, kept: str, whole: bool, offset: str = " + base") -> str:
        return super()._pointer(position, kept, whole, offset if whole else "")

    def _pointers(self, index: int, whole: bool) -> Iterator[str]:
        slot = self.layout.slots[index]
        if not slot.coded:
            yield from super()._pointers(index, whole)
            return
        offset = " + base" if slot.kept.startswith("8bit") else f" + unit * {self.code_block // 2}"
        yield f"p{index} = {self._pointer(slot.position, 'tl.uint8', whole, offset)}"
        scales = f"tl.load(row + {slot.position + 1}).to(tl.pointer_type(tl.float32))"
        yield f"s{index} = {scales} + unit" if whole else f"s{index} = {scales}"

    def _codes_at(self, slot: Slot, whole: bool) -> tuple[str, str]:
        """Where the codes of the block are behind their pointer, and the mask of those that are there."""
        if slot.kept.startswith("8bit"):
            return self._at(whole), "" if whole else ", mask=live"
        return ("half", "") if whole else ("halves", ", mask=live_half")

    def _read(self, index: int, whole: bool) -> str:
        slot = self.layout.slots[index]
        if not slot.coded:
            return super()._read(index, whole)
        at, mask = self._codes_at(slot, whole)
        codes = f"tl.load(p{index} + {at}{mask}{', other=0' if mask else ''})"
        if slot.kept.startswith("4bit"):
            codes = f"unpacked({codes})"
        scales = f"tl.load(s{index} + {'place' if whole else 'places, mask=there, other=0'})"
        return f"decoded({codes}, {scales}, books + {self._book(slot)})"

    def _book(self, slot: Slot) -> int:
        """Where in `books` the values of a code begin; the midpoints between them are behind them."""
        return sum(2 * len(values(kept)) for kept in self.codes[: self.codes.index(slot.kept)])

    def _write(self, store: Store, whole: bool) -> Iterator[str]:
        index, slot = store.position, self.layout.slots[store.position]
        if not slot.coded:
            yield from super()._write(store, whole)
            return
        value = f"v{store.node}" if whole else f"tl.where(live, v{store.node}, 0.0)"
        yield f"largest{index} = block_largest({value})"
        yield f"shares = share_of({value}, largest{index}, {least(slot.kept)!r})"
        book, count = self._book(slot), len(values(slot.kept))
        cells = self.codes.index(slot.kept) * CELLS
        yield f"codes = code_of(shares, books + {book + count}, cells + {cells})"
        if slot.stochastic:
            yield f"codes = code_by_chance(shares, codes, books + {book}, {count}, {self._random(slot, whole)})"
        at, mask = self._codes_at(slot, whole)
        if slot.kept.startswith("4bit"):
            # What a row of odd length leaves of its last byte is 0.
            yield f"codes = packed({'codes' if whole else 'tl.where(live, codes, 0)'})"
        yield f"tl.store(p{index} + {at}, codes.to(tl.uint8){mask})"
        yield f"tl.store(s{index} + {'place' if whole else 'places'}, largest{index}{'' if whole else ', mask=there'})"
