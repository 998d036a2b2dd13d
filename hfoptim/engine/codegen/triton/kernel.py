"""From a plan to Triton's functions: trace, schedule, write, load. Each once; Triton compiles what is run."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from torch import Tensor

from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.layout import Layout
from hfoptim.engine.codegen.schedule import Program
from hfoptim.engine.codegen.triton.coded import CodedWriter
from hfoptim.engine.codegen.triton.rows import RowWriter, tile_of
from hfoptim.engine.codegen.triton.writer import Source, Writer
from hfoptim.engine.plan import Plan
from hfoptim.engine.rule import Function
from hfoptim.engine.tensor_slots import TensorSlots


@dataclass(frozen=True)
class Kernel:
    """The functions for rows of one plan.

    Args:
        step: the module that has them.
        source: their text, and how they are launched.
        program: what they do.
        names: the scalars they take.
        results: names of the sums they hand back: a probe's.
    """

    step: Any
    source: Source
    program: Program
    names: tuple[str, ...]
    results: tuple[str, ...] = ()

    def shape(self, row: TensorSlots) -> tuple[int, int, int]:
        """(batches, rows, columns) of a row as the functions see it, or of the matrix that its codes are kept as."""
        shape = row.param.shape
        if self.source.scales is None:
            return self.program.loops(shape)
        rows = len(row.tensors[self.source.scales])
        return 1, rows, shape.numel() // rows if rows else 0


def generate(
    program: Program,
    layout: Layout,
    scalars: tuple[str, ...],
    tensor_scalars: frozenset[str] = frozenset(),
    tile: tuple[int, int] = (0, 0),
) -> Source:
    """The functions of a scheduled rule or probe.

    Args:
        program: what it does.
        layout: its tensors.
        scalars: names of the entries of h.
        tensor_scalars: those of them that are 0-d tensors on the device.
        tile: rows and columns that one program takes at a time, of a program that tells them apart.
    """
    if not program.flat:
        return RowWriter(program, layout, scalars, tensor_scalars, tile).source()
    writer = CodedWriter if layout.coded else Writer
    return writer(program, layout, scalars, tensor_scalars).source()


_kernels: dict[tuple[int, tuple[str, ...], frozenset[str], tuple[int, int]], tuple[Any, Kernel]] = {}


def kernel(plan: Plan, scalars: Mapping[str, Any], row: TensorSlots, function: Function | None = None) -> Kernel:
    """The kernel for rows like this one.

    Args:
        plan: the plan.
        scalars: the entries of h, numbers and 0-d tensors.
        row: tensors in the shape that the rule sees.
        function: `(grad, param, *state, h) -> {name: 0-d tensor}`, such as a probe, that is wanted instead of the step.

    Raises:
        Untraceable: none can be generated.
    """
    names = tuple(scalars)
    found = native.traced(plan, names, row, function)
    # By identity: `traced` gives the same object for the same rule, and reading its nodes would take longer.
    tensors = frozenset([name for name, value in scalars.items() if isinstance(value, Tensor)])
    program, layout, results = found
    tile = (0, 0) if program.flat else tile_of(*program.loops(row.param.shape)[1:])
    key = (id(found), names, tensors, tile)
    if key not in _kernels:
        source = generate(program, layout, *key[1:])
        _kernels[key] = found, Kernel(load(source.text), source, program, names, results)
    return _kernels[key][1]


@cache
def load(text: str) -> ModuleType:
    """The module of a source."""
    name = f"hfoptim_triton_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    # Triton reads a function's source as tracebacks do, which find it here without a file.
    linecache.cache[f"<{name}>"] = len(text), None, text.splitlines(keepends=True), f"<{name}>"
    module = ModuleType(name)
    exec(compile(text, f"<{name}>", "exec"), module.__dict__)
    return module
