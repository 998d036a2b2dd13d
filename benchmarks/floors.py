"""Time of a step of every optimizer of the registry against its own floor: bytes moved, at the rate of memory.

    OMP_NUM_THREADS=1 python benchmarks/floors.py                   # all of them, ten minutes
    OMP_NUM_THREADS=1 python benchmarks/floors.py --name madgrad    # anew, into the results that are there

Steps are taken by the CPU's kernels, on tensors well beyond the caches. Each is timed in turn with `y += a x`, torch's,
on as many entries: what that moves in its time (12 bytes an entry, 8 of them read) is the rate of memory in that round.
The floor is what is later: all that a step moves, or what it reads, at that rate of reading. What is read alone, as by
a sum over all gradients, comes no faster: a `torch.sum` over 4 bytes takes as long as half of that. Compared are steps
and floors of the same rounds: the median of their ratios is what a limit (`step_time.LIMITS`) is for.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Annotated, Any

import candidates
import console
import measure
import torch
import traffic
import typer
from step_time import LIMITS

from hfoptim.engine import Scope

# Each entry of `x` is read, each of `y` read and written.
_AXPY_READ, _AXPY_MOVED = 8.0, 12.0


def floor(read: float, written: float) -> float:
    """The least time of a step that reads and writes so many bytes per entry, in times of `y += a x`."""
    return max((read + written) / _AXPY_MOVED, read / _AXPY_READ)


def measured(name: str, shapes: measure.Shapes, rounds: int, budget: float) -> dict[str, Any]:
    """How long an optimizer's step takes, and what its floor is.

    Args:
        name: of the registry.
        shapes: of the parameters.
        rounds: at most.
        budget: seconds after which no further round begins.
    """
    params = measure.Parameters(shapes)
    optimizer = candidates.ours(name).make(params)
    step = candidates.stepper(optimizer)
    row: dict[str, Any] = {"optimizer": name, "scope": candidates.scope(optimizer).name}
    if row["scope"] == Scope.MATRIX.name:
        return {**row, "error": "multiplies matrices"}
    with candidates.quiet(), traffic.watched() as seen:
        step()
    found = traffic.read_and_written(optimizer, seen)
    del seen
    if found is None:
        return {**row, "error": "no kernel is generated for all of it"}
    params.guard()
    x, y = (torch.ones(params.numel) for _ in range(2))
    with candidates.quiet():
        step()
        times = measure.in_turn(
            {"step": step, "axpy": lambda: y.add_(x, alpha=1e-9)},
            rounds,
            budget,
            between=params.restore,
        )
    floors = [floor(*found) * each for each in times["axpy"]]
    limit = LIMITS[candidates.scope(optimizer)]
    of_floor = statistics.median(step / floor for step, floor in zip(times["step"], floors, strict=True))
    return {
        **row,
        **{"numel": params.numel, "tensors": len(shapes), "bytes_moved": sum(found), "bytes_read": found[0]},
        **measure.summary(times["step"]),
        **{"floor_ms": 1e3 * statistics.median(floors), "of_floor": of_floor, "limit": limit},
        "of_floor_fastest": min(times["step"]) / min(floors),
        "kept": of_floor <= limit,
    }


def main(
    name: Annotated[list[str] | None, typer.Option(help="an optimizer of the registry; default all")] = None,
    tensors: Annotated[int, typer.Option(help="matrices of 1024 x 2048")] = 8,
    rounds: Annotated[int, typer.Option(help="timed steps of each")] = 25,
    budget: Annotated[float, typer.Option(help="seconds of each, after which no further round begins")] = 2.0,
    repeats: Annotated[int, typer.Option(help="how often to time anew what was above its limit")] = 2,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "floors.json",
) -> None:
    """Time steps against their floors."""
    there = json.loads(output.read_text())["rows"] if name and output.exists() else []
    rows = {row["optimizer"]: row for row in there}
    shapes = measure.equal_shapes(tensors, 1024, 2048)
    for one in name or candidates.names()[0]:
        tries = []
        while not tries or (not tries[-1].get("kept", True) and len(tries) <= repeats):
            tries.append(measured(one, shapes, rounds, budget))
            measure.trim()
        # What else runs on a machine makes a step slow, and none fast.
        rows[one] = found = min(tries, key=lambda row: float(row.get("of_floor", 0.0)))
        console.ERR.print(one, found.get("error") or measure.digits(found["of_floor"]), highlight=False)
        measure.write(output, "floors", {"about": measure.about(), "rows": sorted(rows.values(), key=_by_name)})


def _by_name(row: dict[str, Any]) -> str:
    return str(row["optimizer"])


if __name__ == "__main__":
    typer.run(main)
