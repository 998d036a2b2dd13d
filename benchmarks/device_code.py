"""Triton kernels compiled for a device that is not there.

A step that is `recorded` launches nothing. Each launch it would have made is kept with its arguments, from which Triton
makes the very kernel that it would run: for the same signature, the same alignment of pointers, the same options.
Triton's own assembler and disassembler, which come with it, do the rest.

Nothing of this works in a process that was started with TRITON_INTERPRET=1: its kernels are never compiled.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import triton  # type: ignore[import-untyped]
from assembly import Ptx, Sass, narrow, wide
from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
from triton.backends.nvidia.compiler import get_ptxas  # type: ignore[import-untyped]
from triton.runtime import driver  # type: ignore[import-untyped]

from hfoptim.engine.codegen.triton import launch

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Launch:
    """A launch that was not made.

    Args:
        function: Triton's.
        grid: how many programs.
        arguments: its arguments.
        warps: how many warps a program has.
    """

    function: Any
    grid: int
    arguments: Sequence[Any] = field(repr=False)
    warps: int

    @property
    def name(self) -> str:
        return str(self.function.__name__)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Make no launches meanwhile, and keep what they would have been."""
    found: list[Launch] = []
    with mock.patch.object(launch, "start", lambda *launched: found.append(Launch(*launched))):
        yield found


class _Absent:
    """The part of Triton's driver that compiling asks, for a device of some architecture."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_device(self) -> int:
        # Kernels are kept by device: a number for each architecture.
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)


def compiled(one: Launch, arch: int) -> Code:
    """The kernel of a launch, compiled for an architecture (90 is compute capability 9.0).

    Raises:
        Exception: whatever Triton raises where it cannot.
    """
    before = driver._active
    driver.set_active(_Absent(arch))
    try:
        made = one.function.run(*one.arguments, grid=(one.grid,), warmup=True, num_warps=one.warps, **launch.OPTIONS)
    finally:
        driver._active = before
    return Code(one.name, arch, made.asm["ptx"], made.asm["cubin"], 32 * one.warps)


@dataclass(frozen=True)
class Code:
    """A compiled kernel.

    Args:
        name: of its function.
        arch: what it is compiled for.
        ptx: its PTX.
        cubin: the binary.
        threads: how many a program has.
    """

    name: str
    arch: int
    ptx: str = field(repr=False)
    cubin: bytes = field(repr=False)
    threads: int

    @cached_property
    def sass(self) -> Sass:
        """What the device carries out."""
        return Sass(self._printed("nvdisasm", "-c", "-ndf"))

    @cached_property
    def resources(self) -> dict[str, int]:
        """What a thread needs: `REG`, registers; `STACK` and `LOCAL`, bytes of memory where they do not suffice."""
        printed = self._printed("cuobjdump", "--dump-resource-usage")
        return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", printed)}

    def _printed(self, tool: str, *options: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            command = [str(_TOOLS / tool), *options, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    @cached_property
    def _ptx(self) -> Ptx:
        return Ptx(self.ptx)

    def needs(self) -> dict[str, int]:
        """Registers of a thread, and bytes of memory for what they do not suffice for."""
        return {"registers": self.resources["REG"], "spills": self.resources["STACK"] + self.resources["LOCAL"]}

    def spills_by_default(self) -> int:
        """Bytes of memory as the assembler allocates registers unless told otherwise.

        Triton 3.9 tells it otherwise (--regAllocOptLevel=2), because of a fault in some of its versions.
        """
        target = re.search(r"^\.target\s+(\w+)", self.ptx, re.MULTILINE)
        assert target is not None
        with tempfile.TemporaryDirectory() as folder:
            source, made = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
            source.write_text(self.ptx)
            command = [get_ptxas(self.arch).path, f"--gpu-name={target[1]}", str(source), "-o", str(made)]
            subprocess.run(command, check=True)
            needs = Code(self.name, self.arch, self.ptx, made.read_bytes(), self.threads).needs()
        return needs["spills"]

    def moves(self, entries: float, aligned: bool) -> dict[str, Any]:
        """Bytes that the usual way moves per entry, by accesses of how many bytes, and what it looks up in tables.

        Args:
            entries: of a tensor, for each program.
            aligned: whether memory is.
        """
        accesses = [access for access in self._ptx.usual_accesses(aligned) if access.own and not access.shared]
        data = [access for access in accesses if not access.lookup]
        each = self.threads / entries
        return {
            "read": each * sum(access.bytes for access in data if not access.store),
            "written": each * sum(access.bytes for access in data if access.store),
            "widths": sorted({access.bytes for access in data}),
            "lookups": each * sum(access.lookup for access in accesses),
        }

    def instructions(self, entries: float, aligned: bool) -> float:
        """Instructions per entry on the usual way; arguments as for `moves`. Takes half a second.

        Of a program with one block to take: what it does once, such as adding up what others have left, is in it.
        """
        data = [a for a in self._ptx.usual_accesses(True) if a.own and not a.shared]
        size = max((a.bytes for a in data), default=16)
        way = self.sass.usual((wide if aligned else narrow)(size))
        blocks = 1.0
        if aligned and (once := sum(a.bytes == size for a in data)):
            # The assembler takes several passes through a short loop as one.
            blocks = max(1.0, sum(map(wide(size), way)) / once)
        return self.threads / entries * len(way) / blocks
