"""Compiling generated C++ and loading it; what was compiled once on a machine is found again."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

RUNTIME = Path(__file__).with_name("cpp") / "runtime.h"

_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-w")
_DIGEST = hashlib.sha256().digest_size


@cache
def compiler() -> str | None:
    """The C++ compiler of this machine, or None. `CXX` names another one."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


@cache
def _flags() -> tuple[str, ...]:
    # Linking with C++'s shared library takes as long as compiling a kernel; with the archive, where there is one, a
    # fraction of it. What comes from there is nobody else's.
    archive = os.path.isabs(_asked("-print-file-name=libstdc++.a").strip())
    linking = ("-static-libstdc++", "-Wl,--exclude-libs,ALL") if archive else ()
    if platform.machine() in ("x86_64", "AMD64"):
        return (*_FLAGS, *linking, "-march=native", "-mprefer-vector-width=512")
    return (*_FLAGS, *linking, "-mcpu=native")


def _asked(*arguments: str) -> str:
    """What the compiler prints; nothing where there is none, or where it cannot be run."""
    name = compiler()
    if name is None:
        return ""
    try:
        return _run([name, *arguments]).stdout
    except OSError:
        return ""


def _run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LC_ALL": "C", **environment}  # in one language: what it says tells compilers apart
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=env)


@cache
def _machine() -> str:
    """What decides whether code compiled elsewhere runs here."""
    cpu = Path("/proc/cpuinfo")
    flags = (
        []
        if not cpu.exists()
        else [line for line in cpu.read_text().splitlines() if line.startswith(("flags", "Features"))][:1]
    )
    return "\n".join([_asked("--version"), platform.machine(), platform.processor(), *flags])


@cache
def has_float16() -> bool:
    """Whether there is a compiler that knows `_Float16` (g++ from 12 on)."""
    return "__FLT16_MAX__" in _asked(*_flags(), "-dM", "-E", "-x", "c++", os.devnull)


def folder() -> Path | None:
    """Where compiled kernels are kept: `HFOPTIM_CACHE`, or `hfoptim` in the user's cache folder; None without either.

    It need not be there.
    """
    named = os.environ.get("HFOPTIM_CACHE")
    try:
        if named:
            # Absolute: a name without a slash would be looked for among the system's libraries.
            return Path(named).expanduser().absolute()
        base = Path(os.environ.get("XDG_CACHE_HOME") or "")
        return (base if base.is_absolute() else Path.home() / ".cache") / "hfoptim"
    except (RuntimeError, OSError):  # a user without a home, a current folder that is gone
        return None


@cache
def missing() -> str | None:
    """What kernels lack on this machine, or None when they can be made: found out by making a small one."""
    if compiler() is None:
        return "a C++ compiler (g++ or clang++)"
    try:
        load('using real = float;\n#include "runtime.h"\nextern "C" void step() { omp_get_num_threads(); }\n')
    except RuntimeError as error:
        return f"a C++ compiler that makes shared libraries with OpenMP ({str(error).strip().splitlines()[-1]})"
    return None


@cache
def load(source: str) -> Any:
    """The function `step` of a source, compiled unless that was done before.

    What the cache folder has is taken if it is whole, else made anew. What cannot be kept there is compiled, loaded and
    leaves nothing behind; a warning, once, says why.

    Raises:
        RuntimeError: there is no compiler, it fails, or what it makes cannot be loaded.
    """
    if compiler() is None:
        raise RuntimeError("a kernel of hfoptim needs a C++ compiler (g++ or clang++), and there is none")
    runtime = RUNTIME.read_text()
    key = hashlib.sha256("\n".join([source, runtime, *_flags(), _machine()]).encode()).hexdigest()[:32]
    place, problem = _usable_folder()
    if place is not None:
        kept = place / f"{key}.so"
        if _is_whole(kept):
            try:
                return _opened(kept)
            except OSError:
                pass  # of a machine with other system libraries, or on a disk that nothing may be run from
        library = _compiled(source, place)
        try:
            _keep(library, kept)
            return _opened(kept)
        except OSError as error:
            problem = f"{place}: {error}"
    else:
        library = _compiled(source, None)
    step = _opened_once(library, place)
    _warn_not_kept(str(problem))
    return step


def _opened(library: Path) -> Any:
    try:
        step = ctypes.CDLL(str(library)).step
    except AttributeError as error:
        raise OSError(str(error)) from error
    step.restype = None
    step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4, ctypes.c_int, ctypes.c_void_p]
    return step


def _opened_once(library: bytes, place: Path | None) -> Any:
    """The function of a library that is not kept: once it is loaded, its file is not needed any more."""
    problem: OSError | None = None
    for work in _workplaces(place):
        file = work / "step.so"
        try:
            file.write_bytes(library)
            return _opened(file)
        except OSError as error:
            problem = error
    raise RuntimeError(f"a compiled kernel of hfoptim cannot be loaded: {problem}")


# -- the cache folder ------------------------------------------------------------------------------------------------


def _usable_folder() -> tuple[Path | None, str | None]:
    """The folder of kept kernels, made if that is possible; or None, and why."""
    path = folder()
    if path is None:
        return None, "the user has no home folder"
    try:
        path.mkdir(mode=0o777 if _is_named() else 0o700, parents=True, exist_ok=True)
        problem = None if _is_named() else _not_the_users_alone(path)
    except OSError as error:
        problem = f"{path}: {error.strerror}"
    return (None, problem) if problem else (path, None)


def _is_named() -> bool:
    return bool(os.environ.get("HFOPTIM_CACHE"))


def _not_the_users_alone(path: Path) -> str | None:
    """Why others may be able to put a library into a folder, which would then be run; None where they are not.

    Folders that the user has named are not asked: they may be shared on purpose.
    """
    if os.name != "posix":
        return None
    status = path.stat()
    if _belongs_to_others(status):
        return f"{path} belongs to another user"
    if status.st_mode & 0o022:
        try:
            path.chmod(status.st_mode & 0o755)
        except OSError:
            if not os.statvfs(path).f_flag & os.ST_RDONLY:
                return f"{path} can be written by other users"
    return None


def _belongs_to_others(status: os.stat_result) -> bool:
    return os.name == "posix" and status.st_uid not in (os.geteuid(), 0)


def _is_whole(kept: Path) -> bool:
    """Whether a kept library is what was once written there, by somebody who may.

    A library that was cut off does not always fail to load: it may end the process.
    """
    try:
        with kept.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except OSError:
        return False
    if not _is_named() and (_belongs_to_others(status) or (os.name == "posix" and status.st_mode & 0o022)):
        return False
    return content[-_DIGEST:] == _digest(kept, content[:-_DIGEST])


def _digest(kept: Path, library: bytes) -> bytes:
    # With the name: a whole library of another kernel is not this one.
    return hashlib.sha256(kept.name.encode() + library).digest()


def _keep(library: bytes, kept: Path) -> None:
    """Put a library into the cache folder, with its digest behind it, where loaders do not look."""
    # Processes of several machines, whose numbers may be equal, share a folder.
    part = kept.with_name(f".{kept.stem}.{secrets.token_hex(8)}.part")
    try:
        # Readable for all who can reach the folder, as a shared one is meant to be, and writable for its owner.
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
            file.write(library + _digest(kept, library))
        # Moved into place whole: other processes may compile the same.
        os.replace(part, kept)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@cache
def _warn_not_kept(problem: str) -> None:
    warnings.warn(
        f"hfoptim cannot keep compiled kernels, so that every process compiles them anew, half a second each "
        f"({problem}); let the environment variable HFOPTIM_CACHE name a folder for them",
        stacklevel=4,
    )


# -- the compiler ----------------------------------------------------------------------------------------------------


def _workplaces(place: Path | None) -> Iterator[Path]:
    """Folders to work in, each gone again when the next is asked for: the system's, then one in the cache folder."""
    for base in (None, place) if place is not None else (None,):
        try:
            work = tempfile.TemporaryDirectory(prefix="hfoptim-", dir=base, ignore_cleanup_errors=True)
        except OSError:
            continue
        with work:
            yield Path(work.name)


def _compiled(source: str, place: Path | None) -> bytes:
    """The library of a source.

    Raises:
        RuntimeError: the compiler fails.
    """
    problem = "there is no folder that a file can be written to"
    for work in _workplaces(place):
        file, out = work / "step.cpp", work / "step.so"
        command = [str(compiler()), *_flags(), f"-I{RUNTIME.parent}", str(file), "-o", str(out)]
        try:
            file.write_text(source)
            done = _run(command, TMPDIR=str(work))
            if done.returncode == 0:
                return out.read_bytes()
            problem = done.stderr[-3000:] or f"it ended with {done.returncode}"
        except OSError as error:
            problem = str(error)
    raise RuntimeError(f"{compiler()} could not compile a kernel of hfoptim:\n{problem}")
