"""Optimizers in all forms, as kernels for a GPU that is not there: recorded, compiled, judged.

    python benchmarks/kernel_cases.py --arch 90      # AdamW in every form, all in float32: what the docs show
    python benchmarks/kernel_cases.py --all --output all.json
    python benchmarks/kernel_cases.py --name adamw --name lamb --form fp32 --arch 90 --processes 1

Steps are taken on a CPU with the launcher taken out (device_code.py). Bytes that the compiled kernels of a step move
per entry are set beside those of the engine's schedule (traffic.py).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import candidates
import device_code
import measure
import torch
import traffic
from device_code import Code, Launch
from generated import AROUND, GENERATED, put_in

import hfoptim
from hfoptim.engine import Scope
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.triton import kernel
from hfoptim.engine.codegen.triton.writer import BLOCK
from hfoptim.registry.lookup import option_names

ARCHITECTURES = (80, 90)
# That for which instructions are counted.
INSTRUCTIONS = 90

# How parameters are rounded and state is kept, by a short name: dtype of parameters and gradients, options.
FORMS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "fp64": (torch.float64, {}),
    "fp32, caution": (torch.float32, {"caution": True}),
    "fp32, bf16 state": (torch.float32, {"state_dtype": "bfloat16"}),
    "fp32, 8-bit state": (torch.float32, {"state_dtype": "8bit"}),
    "fp32, 4-bit state": (torch.float32, {"state_dtype": "4bit"}),
    "bf16, nearest": (torch.bfloat16, {"kahan_sum": False}),
    "bf16, Kahan": (torch.bfloat16, {}),
    "bf16, stochastic": (torch.bfloat16, {"stochastic_rounding": True}),
    "bf16, remainder 8": (torch.bfloat16, {"master_weights": 8}),
    "bf16, remainder 16": (torch.bfloat16, {"master_weights": 16}),
    "bf16, bf16 state": (torch.bfloat16, {"state_dtype": "bfloat16"}),
    "fp16, Kahan": (torch.float16, {}),
}

# What parameters look like: a weight, and what is beside it.
SHAPES = {"matrix": (256, 512), "vector": (131072,)}


@dataclass(frozen=True)
class Case:
    """One optimizer in one form, for a parameter of one shape, in memory that is aligned to 16 bytes or not."""

    name: str
    form: str
    shape: str = "matrix"
    aligned: bool = True


def options_of(name: str, form: str) -> dict[str, Any] | None:
    """The options of an optimizer in a form; None where it does not take them."""
    more = FORMS[form][1]
    known = option_names(name)
    return None if more.keys() - known else candidates.options(name, **more)


def cases(names: Sequence[str] = (), forms: Sequence[str] = ()) -> list[Case]:
    """All cases of some optimizers in some forms; all of both if none is given.

    The second shape counts only for optimizers whose rule sees more than an entry and less than a matrix.
    """
    found = []
    for name in names or candidates.names()[0]:
        optimizer = hfoptim.get_optimizer_info(name).opt_class(
            _parameters((2, 2), torch.float32), **candidates.options(name)
        )
        sums = candidates.scope(optimizer) is Scope.TENSOR
        for form in forms or FORMS:
            if options_of(name, form) is None:
                continue
            for shape in SHAPES if sums else ("matrix",):
                found += [Case(name, form, shape, aligned) for aligned in (True, False)]
    return found


def _parameters(shape: tuple[int, ...], dtype: torch.dtype, aligned: bool = True) -> list[tuple[str, Any]]:
    param = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))
    # A gradient in the middle of a larger array, as those of DDP and FSDP are.
    flat = torch.zeros(param.numel() + 1, dtype=dtype)
    param.grad = flat[0 if aligned else 1 :][: param.numel()].view(shape)
    return [("model.layer.weight", param)]


def optimizer_of(case: Case) -> Any:
    """The case's optimizer, ready to step."""
    options = options_of(case.name, case.form)
    assert options is not None
    params = _parameters(SHAPES[case.shape], FORMS[case.form][0], case.aligned)
    return hfoptim.get_optimizer_info(case.name).opt_class(params, **options)


def launches_of(case: Case) -> tuple[list[Launch], dict[str, Any]]:
    """The launches of a case's second step, and what its schedule says.

    Returns:
        The launches; and `scheduled_read` and `scheduled_written`, bytes per entry, and `read_again`, those that a pass
        reads when it walks a row once more, if rows and columns are told apart.
    """
    optimizer = optimizer_of(case)
    step = candidates.stepper(optimizer)
    with put_in(), device_code.recorded() as launches:
        step()
        launches.clear()
        with traffic.watched(GENERATED, AROUND) as seen:
            step()
    found = traffic.read_and_written(optimizer, seen)
    said: dict[str, Any] = {} if found is None else {"scheduled_read": found[0], "scheduled_written": found[1]}
    for plan, names, row, probe in seen:
        program, layout, _ = native.program_of(plan, names, row, plan.rule.probe.fn if probe else None)
        if not program.flat:
            said["read_again"] = traffic.read_again(program, layout, row)
    return list(launches), said


def tile_of(one: Launch) -> int:
    """The entries of a tile of rows and columns, for the function of a launch that takes such; else 0."""
    for _, made in kernel._kernels.values():
        if getattr(made.step, one.name, None) is one.function:
            return math.prod(made.source.tile)
    return 0


def judged(case: Case, arch: int) -> dict[str, Any]:
    """What a case's kernels are compiled to, and whether they move what the schedule says."""
    row: dict[str, Any] = {**vars(case), "arch": arch}
    launches, scheduled = launches_of(case)
    row |= {"launches": [launch.name for launch in launches], "kernels": [], **scheduled}
    for launch in launches:
        code = _code(launch, arch)
        found: dict[str, Any] = {"kernel": launch.name, "warps": launch.warps, **code.needs()}
        if found["spills"]:
            found["spills_by_default"] = code.spills_by_default()
        # One program for each block; the others draw noise beforehand, or add up what these have left.
        if launch.grid > 1 and not launch.name.startswith(("lines", "drawn")):
            # A program that takes a tile of rows and columns walks over its rows, so many columns at a time; others
            # take one block, or one after the other.
            if tile := tile_of(launch):
                found["tile"] = tile
            entries = tile or BLOCK
            found |= code.moves(entries, case.aligned)
            # They take as long as compiling: of one form for all, of all forms for one.
            if arch == INSTRUCTIONS and (case.form == "fp32" or case.name == "adamw"):
                found["instructions"] = code.instructions(entries, case.aligned)
        row["kernels"].append(found)
    return row


def compiled(case: Case, arch: int) -> dict[str, Any]:
    """Compile a case's kernels, for whoever finds them in Triton's cache."""
    launches, _ = launches_of(case)
    for launch in launches:
        _code(launch, arch)
    return {**vars(case), "arch": arch, "launches": [launch.name for launch in launches]}


def _code(launch: Launch, arch: int) -> Code:
    key = (launch.function.cache_key, launch.warps, arch)
    if key not in _codes:
        _codes[key] = device_code.compiled(launch, arch)
    return _codes[key]


_codes: dict[Any, Code] = {}


# -- many of them ----------------------------------------------------------------------------------------------------


def in_processes(
    wanted: Sequence[tuple[Case, int]], processes: int, judge: bool = True, until: float = float("inf")
) -> Iterator[dict[str, Any]]:
    """`judged` of many cases and architectures, or {"error": why not}, by processes of their own.

    Each has its environment without TRITON_INTERPRET, so it can be called from where kernels are interpreted.

    Args:
        wanted: what.
        processes: how many, at most.
        judge: whether to judge what is compiled.
        until: of `time.perf_counter`, when the processes are ended.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["OMP_NUM_THREADS"] = "1"
    # What one optimizer's cases have in common is compiled once.
    shares: dict[int, list[tuple[Case, int]]] = {}
    places: dict[str, int] = {}
    for case, arch in wanted:
        place = places.setdefault(case.name, len(places) % processes)
        shares.setdefault(place, []).append((case, arch))
    command = [sys.executable, "-W", "ignore", __file__, "--serve", *(["--only-compile"] if not judge else [])]
    # Each process has a thread that reads it: a pipe that nobody reads from would stop it.
    lines: queue.Queue[str | None] = queue.Queue()
    running, readers = [], []
    with ExitStack() as files:
        for share in shares.values():
            given = files.enter_context(tempfile.TemporaryFile("w+"))
            json.dump([[vars(case), arch] for case, arch in share], given)
            given.seek(0)
            process = subprocess.Popen(command, stdin=given, stdout=subprocess.PIPE, env=environment, text=True)
            running.append(process)
            readers.append(threading.Thread(target=_read, args=(files.enter_context(process), lines), daemon=True))
            readers[-1].start()
        files.callback(_end, running)
        unfinished, ended = len(running), False
        while unfinished:
            left = None if until == float("inf") else max(0.0, until - time.perf_counter())
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                _end(running)
                until, ended = float("inf"), True
                continue
            if line is None:
                unfinished -= 1
            elif line.endswith("}\n"):
                yield json.loads(line)
        failed = [process.wait() for process in running]
    if any(failed) and not ended:
        raise RuntimeError(f"processes that compile kernels ended with {failed}")


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Pass on what a process prints, and None at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End those that still run."""
    for process in processes:
        if process.poll() is None:
            process.kill()


def serve(judge: bool) -> None:
    """Judge the cases that stand on the standard input, a line of JSON for each; or compile them only."""
    torch.set_num_threads(1)
    for fields, arch in json.loads(sys.stdin.read()):
        case = Case(**fields)
        try:
            row = judged(case, arch) if judge else compiled(case, arch)
        except Exception as error:  # the others are to be judged all the same
            row = {**vars(case), "arch": arch, "error": measure.reason(error)}
        print(json.dumps(row), flush=True)


def main(arguments: Mapping[str, Any]) -> None:
    """Judge cases and write what is found."""
    chosen = cases(arguments["name"], arguments["form"])
    if not (arguments["name"] or arguments["form"] or arguments["all"]):
        chosen = list(dict.fromkeys([*cases(["adamw"]), *cases((), ["fp32"])]))
    output, rows = arguments["output"], []
    if arguments["resume"] and output.exists():
        rows = json.loads(output.read_text())["rows"]
    done = {tuple(row[key] for key in _ORDER) for row in rows}
    wanted = [(case, arch) for case in chosen for arch in arguments["arch"]]
    wanted = [
        (case, arch) for case, arch in wanted if tuple({**vars(case), "arch": arch}[key] for key in _ORDER) not in done
    ]
    written = time.perf_counter()
    for row in in_processes(wanted, arguments["processes"]):
        rows.append(row)
        # All forms take hours: what was found is kept, should they be interrupted.
        if time.perf_counter() - written > _SECONDS:
            _write(output, rows)
            written = time.perf_counter()
    _write(output, rows)


def _write(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: [str(row[key]) for key in _ORDER])
    measure.write(output, "kernels", {"about": measure.about(), "rows": rows})


_ORDER = ("name", "form", "shape", "aligned", "arch")
_SECONDS = 20.0

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", action="append", default=[], help="an optimizer of the registry")
    parser.add_argument("--form", action="append", default=[], choices=FORMS)
    parser.add_argument("--arch", action="append", type=int, help=f"compute capability; default {ARCHITECTURES}")
    parser.add_argument("--all", action="store_true", help="every optimizer in every form")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "kernels.json")
    parser.add_argument("--resume", action="store_true", help="keep what the output has already, and judge the rest")
    for hidden in ("--serve", "--only-compile"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(not given.only_compile)
    else:
        given.arch = given.arch or list(ARCHITECTURES)
        main(vars(given))
