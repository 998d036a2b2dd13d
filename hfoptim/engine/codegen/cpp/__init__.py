"""C++ from a scheduled rule: one function that steps every tensor of a bucket, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hfoptim.engine.codegen.cpp.flat import CodedWriter, FlatWriter
from hfoptim.engine.codegen.cpp.rows import RowWriter
from hfoptim.engine.codegen.layout import Layout
from hfoptim.engine.codegen.schedule import Program


def generate(
    program: Program, layout: Layout, scalars: tuple[str, ...], codebook: Callable[[str], Iterable[float]]
) -> str:
    """The source of `void step(...)`, whose arguments are

        tensors   how many rows the bucket has
        sizes     per row: batches, rows and columns of the loops, then rows and columns of the coded state
        table     per row: the addresses of its tensors
        values    the entries of h
        seeds     per row: 32 bits
        threads   how many to use
        results   the program's results, added up over the tensors

    Args:
        program: the rule.
        layout: its tensors.
        scalars: names of the entries of h.
        codebook: name of a code -> its values in ascending order.
    """
    writer = RowWriter if program.axes > 1 else CodedWriter if layout.coded else FlatWriter
    return "\n".join(writer(program, layout, scalars, codebook).lines()) + "\n"
