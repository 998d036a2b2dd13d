"""Kernels that see a tensor as one run of entries: element-wise rules, and reductions over whole tensors."""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.engine.codegen.cpp.writer import SPAN, Writer
from hfoptim.engine.codegen.layout import Slot
from hfoptim.engine.codegen.schedule import Store, Time


class FlatWriter(Writer):
    """Spans of entries."""

    def pass_lines(self, phase: int) -> Iterator[str]:
        time = (phase, 0)
        stores, sums = self.program.stored(time, "full"), self.sums(phase, "scalar")
        yield from self._head(phase)
        yield from self._seeds(stores)
        yield from ("  " + line for line in self._arrays(time, stores, "0"))
        yield from (f"  double s{i} = {self._start(i)};" for i in sums)
        yield f"  for (i64 from = first * {SPAN}; from < least(last * {SPAN}, w.C); from += {SPAN}) {{"
        yield f"    const i64 to = least(from + {SPAN}, w.C);"
        yield from self._sum_loop(time, stores, sums, "from", "to", "i")
        yield "  }"
        yield from self._put_down_totals(sums)

    def _sum_loop(
        self, time: Time, stores: list[Store], sums: list[int], start: str, end: str, entry: str
    ) -> Iterator[str]:
        """The innermost loop; what it sums is added to `s<node>`."""
        yield from (f"    real a{i} = {self._start(i)};" for i in sums)
        added = ", ".join(f"a{i}" for i in sums if self.nodes[i].op == "sum")
        clause = f" reduction(+:{added})" if added else ""
        clause += "".join(f" {self._clause(i)}" for i in sums if self.nodes[i].op != "sum")
        yield f"#pragma omp simd{clause}"
        yield f"    for (i64 i = {start}; i < {end}; ++i) {{"
        yield from ("      " + line for line in self._body(time, self.program.roots(time)))
        for store in stores:
            yield from ("      " + line for line in self._write(store, entry))
        yield from ("      " + self._join(i, f"a{i}", f"v{self.nodes[i].args[0]}", "real") for i in sums)
        yield "    }"
        yield from ("    " + self._join(i, f"s{i}", f"a{i}", "double") for i in sums)

    def units(self) -> str:
        return f"(w.C + {SPAN - 1}) / {SPAN}"


class CodedWriter(FlatWriter):
    """Blocks of coded state: decode, step, encode."""

    def pass_lines(self, phase: int) -> Iterator[str]:
        time, block = (phase, 0), self.layout.block
        stores, sums = self.program.stored(time, "full"), self.sums(phase, "scalar")
        coded_loads = [index for index in sorted({*self.program.reads(time).values()}) if self._slot(index).coded]
        coded_stores = [s for s in stores if self._slot(s.position).coded]
        yield from self._head(phase)
        yield from self._seeds(stores)
        yield from (f"  double s{i} = {self._start(i)};" for i in sums)
        yield f"  const i64 blocks = (w.code_columns + {block - 1}) / {block};"
        yield "  for (i64 unit = first; unit < last; ++unit) {"
        yield f"    const i64 line = unit / blocks, column = (unit % blocks) * {block};"
        yield f"    const i64 n = least({block}, w.code_columns - column);"
        yield "    const i64 start = line * w.code_columns + column;"
        yield "    const i64 half = line * ((w.code_columns + 1) / 2) + column / 2; (void)half;"
        yield from ("    " + line for line in self._arrays(time, stores, "start"))
        for index in coded_loads:
            slot = self._slot(index)
            yield f"    float old{index}[{block}];"
            codes, scale = self._codes(slot)
            yield f"    decode<{slot.kept[0]}>(book_{slot.kept}, {codes}, {scale}, n, old{index});"
        yield from (f"    float new{s.position}[{block}];" for s in coded_stores)
        yield from self._sum_loop(time, stores, sums, "0", "n", "start + i")
        for store in coded_stores:
            slot = self._slot(store.position)
            codes, scale = self._codes(slot)
            call = f"encode<{slot.kept[0]}, {'true' if slot.stochastic else 'false'}>"
            seed = f"seed{store.position}" if slot.stochastic else "0u"
            yield f"    {call}(book_{slot.kept}, new{store.position}, n, {codes}, {scale}, start, {seed});"
        yield "  }"
        yield from self._put_down_totals(sums)

    def _codes(self, slot: Slot) -> tuple[str, str]:
        """Addresses of a block's codes and its scale."""
        offset = "start" if slot.kept.startswith("8bit") else "half"
        return f"(uint8_t*)w.at[{slot.position}] + {offset}", f"((float*)w.at[{slot.position + 1}])[unit]"

    def units(self) -> str:
        return f"w.code_rows * ((w.code_columns + {self.layout.block - 1}) / {self.layout.block})"
