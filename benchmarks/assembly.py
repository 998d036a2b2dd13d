"""What a compiled kernel does, read off its PTX and its SASS: the accesses to memory and the instructions of one way
through it.

A kernel has several ways: whole blocks and the last one of a tensor, aligned and unaligned memory, the rare cases of a
division. Branches are followed so that one of them, the *usual* way, comes out: as many accesses of the wanted sort as
there can be, then as few calls of subroutines (those are the rare cases) and as few instructions. A loop is gone
through once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        op: its name with all modifiers, `LDG.E.128` or `ld.global.v4.b32`.
        operands: what stands behind it.
        predicated: whether it is carried out on a condition.
    """

    op: str
    operands: str
    predicated: bool

    @property
    def name(self) -> str:
        return self.op.partition(".")[0]

    @property
    def registers(self) -> list[str]:
        return re.findall(r"%[a-z]+\d*(?:\.x)?", self.operands)


# How much an instruction is wanted: 1 or 0; less if it is to be avoided.
Wanted = Callable[[Instruction], int]


class Listing:
    """A function's instructions in order, and the labels among them."""

    # Names of instructions that jump, that end a way, and that call.
    jumps: tuple[str, ...]
    ends: tuple[str, ...]
    calls: tuple[str, ...]

    def __init__(self, text: str) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        for line in text.splitlines():
            self.read(line)

    def read(self, line: str) -> None:
        """Take in a line of the text: a label, an instruction or neither."""
        raise NotImplementedError

    def target(self, jump: Instruction) -> int:
        """Where a jump leads."""
        name = re.search(r"[.$]L\w+", jump.operands)
        if name is None or name.group() not in self.labels:
            raise ValueError(f"no target of this jump is known: {jump.op} {jump.operands}")
        return self.labels[name.group()]

    def usual(self, wanted: Wanted) -> list[Instruction]:
        """The instructions of the usual way, which has as many of the wanted ones as there can be.

        Raises:
            ValueError: no way leads to an end.
        """
        # From the ends back: (-wanted, calls, instructions) from here to the end, and where to go next.
        best: list[tuple[tuple[int, int, int], int] | None] = [None] * len(self.instructions)
        for at, choices in self._from_the_ends:
            one = self.instructions[at]
            own = (-int(wanted(one)), int(one.name in self.calls), 1)
            ways = [(_sum(own, there[0]), to) for to in choices if (there := best[to]) is not None]
            if one.name in self.ends:
                ways.append((own, -1))
            best[at] = min(ways, default=None)
        found, at = [], 0
        if not best or best[0] is None:
            raise ValueError("no way leads to an end")
        while at >= 0:
            step = best[at]
            assert step is not None
            found.append(self.instructions[at])
            at = step[1]
        return found

    def _next(self, at: int) -> list[int]:
        """What may follow an instruction."""
        one = self.instructions[at]
        found = [] if one.name in (*self.jumps, *self.ends) and not one.predicated else [at + 1]
        if one.name in self.jumps:
            found.append(self.target(one))
        return [to for to in found if to < len(self.instructions)]

    @cached_property
    def _from_the_ends(self) -> list[tuple[int, list[int]]]:
        """What can be reached from the first instruction, each behind all that may follow it, and what that is.

        Not where that would begin a loop again: what has led here follows. It need not stand before: the end of a
        loop's body is often above its beginning.
        """
        if not self.instructions:
            return []
        found: dict[int, list[int]] = {}
        following = {0: self._next(0)}
        way, on_way, left = [0], {0}, {0: list(following[0])}
        while way:
            at = way[-1]
            if not left[at]:
                found[at] = following[at]
                on_way.remove(way.pop())
                continue
            to = left[at].pop()
            if to in on_way:
                following[at].remove(to)
            elif to not in following:
                following[to] = self._next(to)
                left[to] = list(following[to])
                way.append(to)
                on_way.add(to)
        return list(found.items())


def _sum(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


# -- SASS ------------------------------------------------------------------------------------------------------------


class Sass(Listing):
    """What `nvdisasm` prints of a kernel: what the device carries out."""

    jumps, ends, calls = ("BRA",), ("EXIT", "RET"), ("CALL",)

    def read(self, line: str) -> None:
        if label := re.match(r"\s*(\.L\w+):", line):
            self.labels[label.group(1)] = len(self.instructions)
        elif found := re.match(r"\s*(?:/\*[0-9a-f]+\*/)?\s*(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\b(.*?);", line):
            self.instructions.append(Instruction(found.group(2), found.group(3), found.group(1) is not None))


def wide(size: int) -> Wanted:
    """Whether an instruction of SASS accesses global memory so many bytes at a time: 16, or 8."""
    return lambda one: one.name in ("LDG", "STG") and f".{8 * size}" in one.op


def narrow(size: int) -> Wanted:
    """Whether an instruction of SASS accesses global memory in other pieces than these."""
    is_wide = wide(size)
    return lambda one: one.name in ("LDG", "STG") and not is_wide(one)


# -- PTX -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """A thread's access to global memory.

    Args:
        store: whether it writes.
        bytes: how many.
        own: whether the address goes by the thread: the data of an entry, not what all threads of a program read.
        lookup: whether it goes by what was read: an entry of a table that stays in the cache.
        shared: whether it is of what all programs of a tensor read, and so hinted to stay in the cache.
        vector: whether it is of several numbers at once, as accesses of aligned memory are.
    """

    store: bool
    bytes: int
    own: bool
    lookup: bool
    shared: bool = False
    vector: bool = False

    @property
    def of_entry(self) -> bool:
        """Whether it is of an entry's data: not of what all share, nor of a table."""
        return self.own and not self.shared and not self.lookup


class Ptx(Listing):
    """PTX: what Triton hands to NVIDIA's assembler."""

    jumps, ends, calls = ("bra",), ("ret", "exit"), ("call",)

    def read(self, line: str) -> None:
        line = line.partition("//")[0].strip()
        if label := re.match(r"(\$L\w+):", line):
            self.labels[label.group(1)] = len(self.instructions)
            line = line[label.end() :].strip()
        if found := re.match(r"(@!?%p\d+\s+)?([a-z][\w.:]*)\s*(.*?);", line):
            self.instructions.append(Instruction(found.group(2), found.group(3), found.group(1) is not None))

    @cached_property
    def _of_thread(self) -> tuple[set[str], set[str]]:
        """Registers that differ by thread; registers that follow from data, which threads hand on in shared memory."""
        thread, data = {"%tid.x"}, set[str]()
        before = -1
        while before != len(thread) + len(data):
            before = len(thread) + len(data)
            for one in self.instructions:
                if one.name in ("st", "bra", "bar", "ret"):
                    continue
                own, read = _split(one)
                if thread.intersection(read):
                    thread.update(own)
                loaded = one.op.startswith("ld.shared") or (_GLOBAL.match(one.op) and thread.intersection(read))
                if loaded or data.intersection(read):
                    data.update(own)
        return thread, data

    def access(self, one: Instruction) -> Access | None:
        """The access to global memory that an instruction is, if it is one."""
        found = _GLOBAL.match(one.op)
        if found is None:
            return None
        thread, data = self._of_thread
        address = re.search(r"\[(.*?)\]", one.operands)
        assert address is not None
        registers = set(re.findall(r"%[a-z]+\d+", address.group(1)))
        size = int(found.group(2) or 1) * int(found.group(3)) // 8
        shared = ".L1::evict_last" in one.op
        own, lookup, vector = bool(registers & thread), bool(registers & data), found.group(2) is not None
        return Access(found.group(1) == "st", size, own, lookup, shared, vector)

    def usual_accesses(self, aligned: bool) -> list[Access]:
        """The accesses of the usual way: of whole blocks of aligned memory, or of unaligned."""

        data = [access for one in self.instructions if (access := self.access(one)) and access.of_entry]
        vectors = any(access.vector for access in data)
        # Codes alone are a number of 4 bytes for each thread, where memory is aligned.
        least = min((access.bytes for access in data), default=0)

        def wanted(one: Instruction) -> int:
            access = self.access(one)
            if access is None or not access.of_entry:
                return 0
            if not vectors and aligned:
                return 1 if access.bytes > least else -_AROUND
            # Unaligned, one after the other: a loop over whole blocks, which comes before, is gone around.
            return int(access.vector) if aligned else -_AROUND if access.vector else 1

        return [access for one in self.usual(wanted) if (access := self.access(one)) is not None]


# More than a loop has accesses.
_AROUND = 1000
_GLOBAL = re.compile(r"(ld|st)\.global(?:\.(?!v\d|[busf]\d)[\w:]+)*(?:\.v(\d))?\.[busf](\d+)$")


def _split(one: Instruction) -> tuple[Sequence[str], Sequence[str]]:
    """The registers an instruction writes, and those it reads."""
    registers = one.registers
    if one.operands.startswith("{"):
        written = len(re.findall("%", one.operands.partition("}")[0]))
    else:
        written = one.operands.partition(",")[0].count("%")
    return registers[:written], registers[written:]
