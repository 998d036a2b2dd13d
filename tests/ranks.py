"""Scripts in processes of their own, forked from one that has imported torch and transformers already.

A new interpreter spends seconds on these imports before it runs the first line of a test's script. What is about
starting itself, by a launcher or from a shell, uses subprocess.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

# Of other packages only: a checkout's own modules each process finds by its own path. What is not installed is passed
# over.
IMPORTED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.debug",
    "transformers.trainer",
    "transformers.models.gpt2.modeling_gpt2",
    "accelerate",
    "datasets",
    "pytest",
]
# Elsewhere a fork is not to be had, or not with all libraries.
FORKS = sys.platform == "linux"
CONTEXT: Any = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    CONTEXT.set_forkserver_preload(IMPORTED)


def _run(script: Path | str, arguments: Sequence[str], environment: Mapping[str, str], output: str) -> None:
    said = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [str(script), *arguments]
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    if isinstance(script, Path):
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def start(script: Path | str, *arguments: str, output: Path, paths: Sequence[Path] = (), **environment: str) -> Any:
    """A process that runs a script, as `multiprocessing` has it.

    Args:
        script: what Python is to run; a module by its name.
        *arguments: those of its command line.
        output: the file that takes what it says.
        paths: folders with modules that it imports, besides the root and its own folder.
        **environment: variables beside those of this process.
    """
    found = os.pathsep.join(map(str, [ROOT, *paths]))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": found, **environment}
    process = CONTEXT.Process(target=_run, args=(script, arguments, variables, str(output)))
    process.start()
    return process


@contextmanager
def _ended(processes: list[Any]) -> Iterator[None]:
    """No process outlives this, whatever happens."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def run_ranks(
    script: Path | str, *arguments: str, ranks: int, output: Path, timeout: float, paths: Sequence[Path] = ()
) -> list[str]:
    """Run a script as the processes of one distributed run, with the variables that torchrun sets.

    Fails with what the processes said unless all of them end well.

    Args:
        script: what each rank is to run.
        *arguments: those of its command line; "{rank}" becomes the rank's number.
        ranks: how many processes.
        output: the folder for the files with what each rank says.
        timeout: seconds for all.
        paths: see `start`.

    Returns:
        What each rank said.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    outputs = [output / f"{port}.{rank}.txt" for rank in range(ranks)]
    running: list[Any] = []
    deadline = time.monotonic() + timeout
    with _ended(running):
        for rank, file in enumerate(outputs):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            given = [argument.format(rank=rank) for argument in arguments]
            running.append(start(script, *given, output=file, paths=paths, **shared, **own))
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in running]
    said = [file.read_text() if file.exists() else "" for file in outputs]
    told = [f"rank {rank}: {code}\n{text[-4000:]}" for rank, (code, text) in enumerate(zip(codes, said, strict=True))]
    assert codes == [0] * ranks, "\n".join(told)
    return said


def run(script: Path | str, *arguments: str, output: Path, timeout: float, **more: Any) -> tuple[int | None, str]:
    """Run a script to its end.

    Args:
        script: what Python is to run; a module by its name.
        *arguments: those of its command line.
        output: the file that takes what it says.
        timeout: seconds.
        **more: see `start`.

    Returns:
        Its exit code, None after the time, and what it said.
    """
    process = start(script, *arguments, output=output, **more)
    with _ended([process]):
        process.join(timeout)
        code = process.exitcode
    return code, output.read_text()


def run_code(code: str, *arguments: str, folder: Path, timeout: float = 300, **more: Any) -> str:
    """Run code to its end, which is to be a good one: what it said.

    Args:
        code: of Python.
        *arguments: those of its command line.
        folder: for the file with the code, which is the first that modules are looked for in.
        timeout: seconds.
        **more: see `start`.
    """
    script = folder / "code.py"
    script.write_text(code, encoding="utf-8")
    ended, said = run(script, *arguments, output=folder / "said.txt", timeout=timeout, **more)
    assert ended == 0, said
    return said
