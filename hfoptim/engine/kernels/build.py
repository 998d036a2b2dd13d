"""Compiling generated C++ and loading it; what was compiled once on a machine is found again."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

RUNTIME = Path(__file__).with_name("cpp") / "runtime.h"

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")


@cache
def compiler() -> str | None:
    """The C++ compiler of this machine, or None. `CXX` names another one."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


@cache
def _flags() -> tuple[str, ...]:
    if platform.machine() in ("x86_64", "AMD64"):
        return (*_FLAGS, "-march=native", "-mprefer-vector-width=512")
    return (*_FLAGS, "-mcpu=native")


@cache
def _machine() -> str:
    """What decides whether code compiled elsewhere runs here."""
    version = subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=False).stdout
    cpu = Path("/proc/cpuinfo")
    flags = (
        []
        if not cpu.exists()
        else [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    )
    return "\n".join([version, platform.machine(), platform.processor(), *flags])


@cache
def folder() -> Path:
    """Where compiled kernels are kept: `HFOPTIM_CACHE`, or `hfoptim` in the user's cache folder."""
    named = os.environ.get("HFOPTIM_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = Path(named) if named else base / "hfoptim"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return Path(tempfile.mkdtemp(prefix="hfoptim-"))


@cache
def has_float16() -> bool:
    """Whether the compiler knows `_Float16` (g++ from 12 on)."""
    command = [str(compiler()), *_flags(), "-dM", "-E", "-x", "c++", os.devnull]
    return "__FLT16_MAX__" in subprocess.run(command, capture_output=True, text=True, check=False).stdout


@cache
def missing() -> str | None:
    """What kernels lack on this machine, or None when they can be made: found out by making a small one."""
    if compiler() is None:
        return "a C++ compiler (g++ or clang++)"
    try:
        load('using real = float;\n#include "runtime.h"\nextern "C" void step() { omp_get_num_threads(); }\n')
    except (RuntimeError, OSError) as error:
        return f"a C++ compiler that makes shared libraries with OpenMP ({str(error).strip().splitlines()[-1]})"
    return None


@cache
def load(source: str) -> Any:
    """The function `step` of a source, compiled unless that was done before.

    Raises:
        RuntimeError: the compiler fails.
    """
    runtime = RUNTIME.read_text()
    key = hashlib.sha256("\n".join([source, runtime, *_flags(), _machine()]).encode()).hexdigest()[:32]
    library = folder() / f"{key}.so"
    if not library.exists():
        _compile(source, library)
    step = ctypes.CDLL(str(library)).step
    step.restype = None
    step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4, ctypes.c_int, ctypes.c_void_p]
    return step


def _compile(source: str, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        file, out = Path(work) / "step.cpp", Path(work) / "step.so"
        file.write_text(source)
        command = [str(compiler()), *_flags(), f"-I{RUNTIME.parent}", str(file), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command[0]} could not compile a kernel of hfoptim:\n{done.stderr[-3000:]}")
        # Moved into place whole: other processes may compile the same.
        os.replace(out, library)
