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
import subprocess
import sys
import tempfile
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
from hfoptim.engine.codegen.triton.rows import tile_of
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
        The launches; and `scheduled_read` and `scheduled_written`, bytes per entry, `read_again`, those that a pass
        reads when it walks a row once more, `tile`, the entries of a tile of rows and columns, if there are such.
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
        program, _, _ = native.program_of(plan, names, row, plan.rule.probe.fn if probe else None)
        if not program.flat:
            said["tile"] = math.prod(tile_of(*program.loops(row.param.shape)[1:]))
            again = sum(traffic.walked_again(program, phase) for phase in range(program.phases))
            said["read_again"] = again * row.grad.element_size()
    return list(launches), said


def judged(case: Case, arch: int) -> dict[str, Any]:
    """What a case's kernels are compiled to, and whether they move what the schedule says."""
    row: dict[str, Any] = {**vars(case), "arch": arch}
    launches, scheduled = launches_of(case)
    row |= {"launches": [launch.name for launch in launches], "kernels": [], **scheduled}
    for launch in launches:
        code = _code(launch, arch)
        found: dict[str, Any] = {"kernel": launch.name, "warps": launch.warps, **code.needs()}
        # One program for each block; the others draw noise beforehand, or add up what these have left.
        if launch.grid > 1 and not launch.name.startswith(("lines", "drawn")):
            # A program that takes a tile of rows and columns walks over its rows, so many columns at a time; others
            # take one block, or one after the other.
            entries = row.get("tile") or BLOCK
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
    with ExitStack() as files:
        running = []
        for share in shares.values():
            command = [sys.executable, "-W", "ignore", __file__, "--serve", *(["--only-compile"] if not judge else [])]
            # By files: a pipe that nobody reads from would stop its process.
            given, printed = (files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            json.dump([[vars(case), arch] for case, arch in share], given)
            given.seek(0)
            running.append((subprocess.Popen(command, stdin=given, stdout=printed, env=environment), printed))
        for process, printed in running:
            _ended(process, until)
            printed.seek(0)
            yield from (json.loads(line) for line in printed if line.endswith("}\n"))


def _ended(process: subprocess.Popen[Any], until: float) -> None:
    """Wait for a process; end it when it is time."""
    try:
        failed = process.wait(None if until == float("inf") else max(0.0, until - time.perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        return
    if failed:
        raise RuntimeError(f"a process that compiles kernels ended with {failed}")


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
    wanted = [(case, arch) for case in chosen for arch in arguments["arch"]]
    rows = sorted(in_processes(wanted, arguments["processes"]), key=lambda row: [str(row[key]) for key in _ORDER])
    measure.write(arguments["output"], "kernels", {"about": measure.about(), "rows": rows})


_ORDER = ("name", "form", "shape", "aligned", "arch")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", action="append", default=[], help="an optimizer of the registry")
    parser.add_argument("--form", action="append", default=[], choices=FORMS)
    parser.add_argument("--arch", action="append", type=int, help=f"compute capability; default {ARCHITECTURES}")
    parser.add_argument("--all", action="store_true", help="every optimizer in every form")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "kernels.json")
    for hidden in ("--serve", "--only-compile"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(not given.only_compile)
    else:
        given.arch = given.arch or list(ARCHITECTURES)
        main(vars(given))
