"""Arithmetic with numbers that lie on a device: all of it in one launch, where torch makes one of each operation.

A step that depends on sums over all tensors (LAMB's norm of all gradients, Prodigy's estimate) works out a few numbers
from them, on the device, as the host would have to wait for them. Python's code for that is run on symbols, every time,
and what it computes is one small function. Numbers of the host are among what it is given, each in a place of its own:
the function is the same as long as the code takes the same way.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.codegen.trace import Graph, Node, Shape, Symbol, Untraceable
from hfoptim.engine.codegen.triton import launch
from hfoptim.engine.codegen.triton.kernel import load
from hfoptim.engine.codegen.triton.writer import HEAD, KEPT, SUMS, expression
from hfoptim.engine.operators import OPERATORS

_DOUBLE = "tl.float64"
# How far a function's numbers may be from torch's.
_FINE = 1e-6

# By what is computed, and the device: the function, or why it must not be used.
_functions: dict[Any, Any] = {}


@dataclass
class Arithmetic(Graph):
    """What is computed from numbers on a device, in double precision.

    Attributes:
        tensors: those numbers, 0-d tensors.
        numbers: of the host.
    """

    dtype: torch.dtype = torch.float64
    tensors: list[Tensor] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)

    def add(self, op: str, args: Sequence[Symbol] = (), shape: Shape = (), value: Any = None) -> Symbol:
        if op == "number":
            self.numbers.append(value)
            op, value = "scalar", len(self.numbers) - 1
        return super().add(op, args, shape, value)

    def of(self, value: Any) -> Symbol:
        """A number of the host or on the device."""
        if isinstance(value, Symbol):
            return value
        if not isinstance(value, Tensor):
            return self.add("number", (), (), float(value))
        place = next((i for i, other in enumerate(self.tensors) if other is value), len(self.tensors))
        if place == len(self.tensors):
            kept = str(value.dtype).removeprefix("torch.")
            if kept not in KEPT or value.numel() != 1:
                raise Untraceable(f"it computes with a tensor of {value.dtype} and shape {tuple(value.shape)}")
            self.tensors.append(value)
        return self.add("load", (), (), place)

    def total(self, own: Tensor, rows: int, place: int) -> Symbol:
        """The sum of one column of a table of numbers on the device.

        Args:
            own: the table, row by row.
            rows: how many it has.
            place: the column.
        """
        self.tensors.append(own)
        value = len(self.tensors) - 1, len(own) // rows, place
        return self.add("total", [self.of(rows)], (), value)

    def resolve(self, found: Iterable[tuple[dict[str, Any], torch.dtype]]) -> None:
        """Put numbers, 0-d tensors of these dtypes, in the place of all symbols in some dicts.

        Raises:
            RuntimeError: what computes them does not compile, or gives something else than torch's operations.
        """
        wanted: dict[tuple[int, torch.dtype], list[tuple[dict[str, Any], str]]] = {}
        for values, dtype in found:
            for name, value in values.items():
                if isinstance(value, Symbol):
                    if value.is_boolean:
                        value = value.to(self.dtype)
                    wanted.setdefault((value.index, dtype), []).append((values, name))
        if wanted:
            for places, number in zip(wanted.values(), self._computed(list(wanted)), strict=True):
                for values, name in places:
                    values[name] = number

    def _computed(self, wanted: list[tuple[int, torch.dtype]]) -> list[Tensor]:
        device = self.tensors[0].device
        kinds = tuple([str(t.dtype).removeprefix("torch.") for t in self.tensors])
        key = (tuple(self.nodes), tuple(wanted), kinds, device)
        if key not in _functions:
            _functions[key] = self._made(wanted, kinds, device)
        if isinstance(_functions[key], str):
            return self.by_torch(wanted)
        return self._launched(_functions[key], wanted, device)

    def _launched(self, function: Any, wanted: list[tuple[int, torch.dtype]], device: torch.device) -> list[Tensor]:
        given = array("d", [*self.numbers, *map(launch.address, self.tensors)])
        with launch.on(device):
            values = torch.empty(len(given), dtype=torch.float64, device=device)
            launch.upload(given, torch.float64, values)
            dtypes = list(dict.fromkeys(dtype for _, dtype in wanted))
            counts = [sum(other is dtype for _, other in wanted) for dtype in dtypes]
            out = [torch.empty(count, dtype=dtype, device=device) for dtype, count in zip(dtypes, counts, strict=True)]
            launch.start(function, 1, [values, *out], 4)
        left = {dtype: iter(each.unbind()) for dtype, each in zip(dtypes, out, strict=True)}
        return [next(left[dtype]) for _, dtype in wanted]

    def _made(self, wanted: list[tuple[int, torch.dtype]], kinds: tuple[str, ...], device: torch.device) -> Any:
        """The function, tried once; or why it must not be used, which is told."""
        function = load("\n".join(_source(self.nodes, len(self.numbers), kinds, wanted))).numbers
        problem = None if device.type == "meta" else self.problem(function, wanted, device)
        if problem is None:
            return function
        _tell(f"Triton's kernel for them {problem} on {device}")
        return problem

    def problem(self, function: Any, wanted: list[tuple[int, torch.dtype]], device: torch.device) -> str | None:
        """Why a function must not be used on a device; None where it gives what torch's operations give."""
        try:
            found = self._launched(function, wanted, device), self.by_torch(wanted)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or a driver may say
            return f"does not run ({type(error).__name__}: {error})"
        mine, others = (torch.stack([number.double() for number in numbers]).cpu() for numbers in found)
        alike = torch.allclose(mine, others, rtol=_FINE, atol=0.0, equal_nan=True)
        return None if alike else "gave other numbers than torch"

    def by_torch(self, wanted: list[tuple[int, torch.dtype]]) -> list[Tensor]:
        """The same by torch's operations, one by one."""
        device = self.tensors[0].device
        known: list[Tensor] = []
        for node in self.nodes:
            args = [known[a] for a in node.args]
            if node.op == "load":
                known.append(self.tensors[node.value].reshape(()).to(torch.float64))
            elif node.op == "total":
                table, width, place = node.value
                known.append(self.tensors[table].view(-1, width)[:, place].sum())
            elif node.op == "scalar":
                known.append(torch.full((), self.numbers[node.value], dtype=torch.float64, device=device))
            elif node.op == "same":
                known.append(args[0])
            elif node.op == "cast":
                known.append(args[0].to(node.value).to(torch.float64))
            else:
                known.append(OPERATORS[node.op].eager(*args))
        return [known[i].to(dtype) for i, dtype in wanted]


@cache
def _tell(problem: str) -> None:
    warnings.warn(
        f"hfoptim works out numbers of a step by torch's operations, one launch each: {problem}; please report it, "
        f"with the versions of triton and torch and the device",
        stacklevel=2,
    )


def _source(
    nodes: list[Node], numbers: int, kinds: tuple[str, ...], wanted: list[tuple[int, torch.dtype]]
) -> Iterator[str]:
    dtypes = list(dict.fromkeys(dtype for _, dtype in wanted))
    yield HEAD
    yield "@triton.jit"
    yield f"def numbers(values, {', '.join(f'out{i}' for i in range(len(dtypes)))}):"
    for i, node in enumerate(nodes):
        if node.op == "load":
            there = f"tl.load(values + {numbers + node.value}).to(tl.int64, bitcast=True)"
            said = f"tl.load({there}.to(tl.pointer_type({KEPT[kinds[node.value]]}))).to({_DOUBLE})"
        elif node.op == "total":
            table, width, place = node.value
            there = f"tl.load(values + {numbers + table}).to(tl.int64, bitcast=True).to(tl.pointer_type({_DOUBLE}))"
            yield f"    at = tl.arange(0, {SUMS})"
            yield f"    table{i} = {there}"
            yield f"    rows{i} = v{node.args[0]}.to(tl.int32)"
            yield f"    a{i} = tl.zeros(({SUMS},), {_DOUBLE})"
            yield f"    for start in range(0, rows{i}, {SUMS}):"
            part = f"table{i} + (start + at) * {width} + {place}, mask=start + at < rows{i}, other=0.0"
            yield f"        a{i} += tl.load({part})"
            said = f"tl.sum(a{i})"
        elif node.op == "scalar":
            said = f"tl.load(values + {node.value})"
        elif node.op == "same":
            said = f"v{node.args[0]}"
        else:
            said = expression(node, _DOUBLE)
        yield f"    v{i} = {said}"
    places = dict.fromkeys(dtypes, 0)
    for i, dtype in wanted:
        kept = KEPT[str(dtype).removeprefix("torch.")]
        yield f"    tl.store(out{dtypes.index(dtype)} + {places[dtype]}, v{i}.to({kept}))"
        places[dtype] += 1
    yield ""
