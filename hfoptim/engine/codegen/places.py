"""Where the values of a scheduled rule are kept between passes; the same for every language kernels are written in."""

from __future__ import annotations

from collections.abc import Callable

from hfoptim.engine.codegen.schedule import Program, Time
from hfoptim.engine.codegen.trace import REDUCTIONS


class Places:
    """What has to be remembered, numbered by kind.

    Args:
        program: the scheduled rule.

    Attributes:
        uniform: scalars that are the same for every tensor.
        own: the tensor's own scalars.
        batch, column: values of batches and of columns that a pass, or another kind of loop, reads.
        row: values of rows that a later phase reads.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes, self.kinds, self.times = program.nodes, program.kinds, program.times
        self.live = sorted(program.live)
        self.uniform = self._uniform()
        crossing = self._crossing()
        kept = crossing | self._read_by_other_loops()
        self.own = self._numbered(lambda i: self.kinds[i] == "scalar" and i not in self.uniform)
        self.batch = self._numbered(lambda i: self.kinds[i] == "batch" and i in kept)
        self.column = self._numbered(lambda i: self.kinds[i] == "column" and i in kept)
        self.row = self._numbered(lambda i: self.kinds[i] == "row" and i in crossing)

    def sums(self, phase: int, *kinds: str) -> list[int]:
        """Reductions that a phase ends with, by the kind of their result."""
        ends = [i for i in self.live if self.nodes[i].op in REDUCTIONS and self.times[i] == (phase + 1, 0)]
        return [i for i in ends if self.kinds[i] in kinds]

    def _numbered(self, wanted: Callable[[int], bool]) -> dict[int, int]:
        return {i: place for place, i in enumerate(i for i in self.live if wanted(i))}

    def _uniform(self) -> list[int]:
        uniform: list[int] = []
        for i in self.live:
            node = self.nodes[i]
            varies = node.op in ("load", "size", *REDUCTIONS) or any(a not in uniform for a in node.args)
            if self.kinds[i] == "scalar" and not varies:
                uniform.append(i)
        return uniform

    def _crossing(self) -> set[int]:
        """Nodes that are read in a later phase than the one they are computed in."""
        read = [(self.times[i][0], a) for i in self.live if self.kinds[i] != "full" for a in self.nodes[i].args]
        for time in self._all_times():
            read += [(time[0], leaf) for leaf in self.program.expand(time, self.program.roots(time))[1]]
        return {i for phase, i in read if self.times[i][0] < phase}

    def _read_by_other_loops(self) -> set[int]:
        read = {a for i in self.live for a in self.nodes[i].args if self.kinds[a] != self.kinds[i]}
        for time in self._all_times():
            read |= self.program.expand(time, self.program.roots(time))[1]
        return read

    def _all_times(self) -> list[Time]:
        return [(phase, sub) for phase in range(self.program.phases) for sub in range(self.program.subs(phase))]
