"""How a bucket's rows get to generated Triton functions: tables on the device, which are kept, and the launches."""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine.codegen.call import Rows
from hfoptim.engine.codegen.triton.codes import tables
from hfoptim.engine.codegen.triton.kernel import Kernel
from hfoptim.engine.codegen.triton.writer import Source
from hfoptim.engine.tensor_slots import TensorSlots

# Triton's own default for the first has changed between versions.
OPTIONS = {"enable_fp_fusion": True}
# What is kept on devices for calls like earlier ones: so many calls, and so many bytes.
KEPT_CALLS = 256
KEPT_BYTES = 1 << 27
# Entries that are given to functions of whole matrices at once, which take up to 16 bytes for each in between.
MATRICES = 22 << 20


def start(function: Any, grid: int, arguments: Sequence[Any], warps: int) -> None:
    """The one place where functions are launched; on meta tensors, which are there to be counted, none is."""
    if not arguments[0].is_meta:
        function[(grid,)](*arguments, num_warps=warps, **OPTIONS)


@dataclass
class Call(Rows):
    """Rows for one kernel.

    Args:
        kernel: of the first row; the others' have the same functions.

    Attributes:
        shapes: for each row (batches, rows, columns), as `Writer.cut` takes them.
        entries: of all rows.
    """

    kernel: Kernel
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    entries: int = 0

    @property
    def _width(self) -> int:
        return self.kernel.source.tensors

    def is_full(self, row: TensorSlots) -> bool:
        """Whether a row is too much: functions of whole matrices take a limited number of entries at once."""
        return bool(self.kernel.source.products and self.rows and self.entries + row.param.numel() > MATRICES)

    def add(self, kernel: Kernel, row: TensorSlots, place: int) -> None:
        """Take a row, and its place in the bucket; one without entries has nothing to be done."""
        if row.param.numel():
            self.take(row, place)
            for position in sorted(self.kernel.source.products.values()):
                self.tensors.insert(self._width * (len(self.rows) - 1) + position, row.param)
            self.shapes.append(kernel.shape(row))
            self.entries += row.param.numel()

    def run(self, scalars: Mapping[str, Any], seeds: Sequence[int] = (), arithmetic: Any = None) -> dict[str, Any]:
        """Step the rows; or probe them, and give the sums. Nothing waits for the device.

        Args:
            scalars: the bucket's.
            seeds: the bucket's.
            arithmetic: what goes on computing with the sums (`scalars.Arithmetic`), which are then symbols of its.
        """
        if not self.rows:
            return {}
        kernel, count, device = self.kernel, len(self.rows), self.rows[0].param.device
        source = kernel.source
        with on(device):
            stacks = {index: self._stacks(position) for index, position in source.products.items()}
            memory = _memory(kernel, self.shapes, self.addresses(), device)
            for position in source.products.values():
                self.tensors[position :: self._width] = [row.param for row in self.rows]
            memory.send([scalars[name] for name in kernel.names], self.drawn(seeds))
            found = torch.empty(len(kernel.results), dtype=getattr(torch, source.compute), device=device)
            arguments = {**memory.tensors, "results": found, "rows": count, "programs": memory.blocks}
            grids = {"block": memory.blocks, "row": count, "line": memory.lines, "all": 1}
            put_off = arithmetic is not None and len(source.totals) == len(kernel.results) > 0
            for launch in source.launches[: -1 if put_off else None]:
                if launch.grid == "product":
                    self._product(launch.name, stacks, scalars)
                    continue
                given = [arguments[name] for name in launch.arguments]
                start(getattr(kernel.step, launch.name), grids[launch.grid], given, launch.warps)
        if put_off:
            table, lines = ("partials", memory.blocks) if source.from_partials else ("own", count)
            parts = memory.tensors[table], lines
            return {n: arithmetic.total(*parts, at) for n, at in zip(kernel.results, source.totals, strict=True)}
        return dict(zip(kernel.results, found, strict=True))

    def _stacks(self, position: int) -> list[Tensor]:
        """Memory for what a function of matrices is given and gives: rows of one shape are a stack.

        It is there for one step; between steps the parameters are in its place among the tensors.
        """
        alike: dict[torch.Size, list[int]] = {}
        for number, row in enumerate(self.rows):
            alike.setdefault(row.param.shape, []).append(number)
        dtype, device = getattr(torch, self.kernel.source.compute), self.rows[0].param.device
        stacks = []
        for shape, numbers in alike.items():
            stacks.append(torch.empty((len(numbers), *shape), dtype=dtype, device=device))
            for number, part in zip(numbers, stacks[-1].unbind(), strict=True):
                self.tensors[number * self._width + position] = part
        return stacks

    def _product(self, name: str, stacks: Mapping[int, list[Tensor]], scalars: Mapping[str, Any]) -> None:
        """Call a function of matrices; what it gives goes where it was given them."""
        (product,) = [p for p in self.kernel.program.products if f"product{p.index}" == name]
        numbers = [scalars[n] if isinstance(n, str) else n for n in product.numbers]
        own = stacks[product.index]
        for stack, result in zip(own, product.function.of(own, *numbers), strict=True):
            if result is not stack:
                stack.copy_(result)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whatever the tensors' is."""
    if device.type in ("cpu", "meta"):
        return nullcontext()
    guard: AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard


class Memory:
    """What the launches of one call read, and what they leave for each other, on the device.

    Args:
        source: the kernel's.
        rows: of the call.
        shapes: for each (batches, rows, columns), as `Writer.cut` takes them.
        device: theirs.

    Attributes:
        tensors: by the names of the functions' arguments.
        blocks, lines: how many programs take a block, and a part of the columns of a batch.
        bytes: how much there is, about.
    """

    def __init__(self, source: Source, shapes: list[tuple[int, int, int]], device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        self.addresses = array("Q")
        self.sent = b""
        self.rests = []
        self.blocks = self.lines = vectors = 0
        cuts = [source.cut(shape) for shape in shapes]
        for cut in cuts:
            self.rests.append((cut.entries, self.blocks, cut.blocks, self.lines, vectors, *cut.more))
            self.blocks += cut.blocks
            self.lines += cut.lines
            vectors += cut.vectors
        width = source.tensors + len(self.rests[0])
        self.tensors: dict[str, Tensor] = {
            "owner": _owners([cut.blocks for cut in cuts], device),
            "lines": _owners([cut.lines for cut in cuts], device),
            "vectors": torch.empty(vectors, dtype=getattr(torch, source.compute), device=device),
            "table": torch.empty(len(shapes) * width, dtype=torch.int64, device=device),
            "partials": torch.empty(self.blocks * source.sums, dtype=torch.float64, device=device),
            "own": torch.empty(len(shapes) * source.own, dtype=torch.float64, device=device),
        }
        if source.codes:
            self.tensors["books"], self.tensors["cells"] = tables(source.codes, device)
        self.bytes = sum(tensor.nbytes for tensor in self.tensors.values())

    def point(self, addresses: array[int]) -> None:
        """Tell where the tensors are, if they have moved."""
        if addresses == self.addresses:
            return
        self.addresses = addresses
        tensors = len(addresses) // len(self.rests)
        numbers = array("Q")
        for index, rest in enumerate(self.rests):
            numbers.extend(addresses[index * tensors : (index + 1) * tensors])
            numbers.extend(rest)
        upload(numbers, torch.int64, self.tensors["table"])

    def send(self, scalars: list[Any], seeds: list[int]) -> None:
        """Send the scalars and the seeds of a step, of scalars on the device the address."""
        numbers = array("d", [address(s) if isinstance(s, Tensor) else float(s) for s in scalars])
        numbers.extend(seeds)
        content = numbers.tobytes()
        if content == self.sent:
            return
        self.sent = content
        if "values" not in self.tensors:
            self.tensors["values"] = torch.empty(len(numbers), dtype=torch.float64, device=self.device)
        upload(numbers, torch.float64, self.tensors["values"])


def _owners(counts: list[int], device: torch.device) -> Tensor:
    """The number of each row as many times as programs take a part of it."""
    numbers = torch.arange(len(counts), dtype=torch.int32, device="cpu")
    return numbers.repeat_interleave(torch.tensor(counts, device="cpu")).to(device)


def address(tensor: Tensor) -> float:
    """The number with the bits of a tensor's address."""
    number: float = struct.unpack("d", struct.pack("Q", tensor.data_ptr()))[0]
    return number


def upload(numbers: array[Any], dtype: torch.dtype, to: Tensor) -> None:
    """Copy numbers to a device, without waiting for it."""
    source = torch.frombuffer(numbers, dtype=dtype)
    if to.device.type not in ("cpu", "meta"):
        # Memory of its own for each copy: the allocator does not give it to others before the copy is done.
        source = torch.empty(len(numbers), dtype=dtype, pin_memory=True).copy_(source)
    to.copy_(source, non_blocking=True)


_kept: OrderedDict[Any, Memory] = OrderedDict()


def _memory(kernel: Kernel, shapes: list[tuple[int, int, int]], addresses: array[int], device: torch.device) -> Memory:
    """The memory for rows at these addresses, the same as at the last step where there was one."""
    source = kernel.source
    # By parameters: two optimizers never share what the other's launches may still be reading. And by stream, whose
    # order is what a copy relies on.
    stream = None if device.type in ("cpu", "meta") else torch.get_device_module(device).current_stream(device)
    key = (id(kernel.step), device, stream, *addresses[:: source.tensors])
    memory = _kept.pop(key, None)
    if memory is None or memory.shapes != shapes:
        memory = Memory(source, list(shapes), device)
        kept = memory.bytes + sum(m.bytes for m in _kept.values())
        while _kept and (len(_kept) >= KEPT_CALLS or kept > KEPT_BYTES):
            kept -= _kept.popitem(last=False)[1].bytes
    _kept[key] = memory
    memory.point(addresses)
    return memory
