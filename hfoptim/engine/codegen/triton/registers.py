"""How many registers a thread needs for each of its entries, about: from which follows how many threads share a block.

What Triton generates takes all entries of a thread side by side, so what the rule has read and computed and will use
again is there for all of them at once. What does not find one of a thread's registers goes to memory and back.
"""

from __future__ import annotations

from collections.abc import Iterable

from hfoptim.engine.codegen.layout import PARAM, Layout, Slot
from hfoptim.engine.codegen.schedule import Program, Time

# Bytes of a value in memory, other than 4.
_BYTES = {"float64": 8.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}
# What operations and ways to round have in between beside operands and results, in values.
_WITHIN = {"pow": 4.0, "atan2": 5.0}
# The rare cases of these are a branch, before which no entry's values can be done with.
_BRANCHES, _BRANCH = ("div", "reciprocal", "sqrt", "rsqrt", "pow", "atan2"), 2.0
_REST, _STOCHASTIC, _CODED = 2.0, 2.0, 3.0
# In loops codes take more, as compiled: of lars and novograd, which keep one state.
_CODED_IN_LOOPS = {"8bit": 1.5, "4bit": 2.5}


def needed(program: Program, layout: Layout, time: Time, loop: bool) -> float:
    """Registers of 4 bytes for an entry in one walk over memory: the most that there are at a time.

    Args:
        program: the scheduled rule.
        layout: its tensors.
        time: of the walk.
        loop: whether a program takes one part of memory after the other.
    """
    wide = 2.0 if layout.compute == "float64" else 1.0
    order, leaves = program.expand(time, program.roots(time))
    reads, stores = program.reads(time), program.stored(time, "full")
    reduced = program.reductions(time, "full")
    last = {root: len(order) for root in program.roots(time)}
    for at, i in reversed(list(enumerate(order))):
        for arg in program.nodes[i].args:
            last.setdefault(arg, at)
    # Sums along rows or over a tile have a value of their own for each entry.
    sums = wide * sum(program.kinds[i] != "column" for i in reduced) * (not program.flat)
    values = {i: _read(layout.slots[index], wide) for i, index in reads.items()}
    # Of a column the rows of a tile share a value.
    values |= {i: 0.5 * wide for i in leaves if program.kinds[i] == "column"}
    rest = _rest(layout, PARAM in reads.values(), any(s.position == PARAM for s in stores))
    most = sum(values.values())
    for at, i in enumerate(order):
        now = sum(values.values()) + wide + _WITHIN.get(program.nodes[i].op, 0.0)
        most = max(most, now)
        values[i] = wide
        values = {j: size for j, size in values.items() if last.get(j, -1) > at}
    branch = wide * _BRANCH if any(program.nodes[i].op in _BRANCHES for i in order) else 0.0
    # The assembler takes several passes of a loop at a time, and what one of them stores may wait for the next.
    waits = wide * len(stores) * loop
    written = [layout.slots[s.position] for s in stores]
    waits += sum(_CODED_IN_LOOPS[_kind(slot.kept)] for slot in written if slot.coded) * loop
    return sums + rest + most + branch + waits + _written(layout, written)


def _read(slot: Slot, wide: float) -> float:
    return min(wide, _size(slot.kept))


def _size(kept: str) -> float:
    return _BYTES.get(_kind(kept), 4.0) / 4.0


def _kind(kept: str) -> str:
    """What a number is kept as: of codes how many bits they have."""
    return kept.partition("_")[0]


def _rest(layout: Layout, read: bool, stored: bool) -> float:
    """What is kept of the parameter's rounding, while it waits."""
    return _REST * layout.uses_rest(read, stored)


def _written(layout: Layout, slots: Iterable[Slot]) -> float:
    """What rounding adds."""
    return sum(_CODED if slot.coded else _STOCHASTIC if slot.stochastic else 0.0 for slot in slots)
