"""Time of a step as models grow and as tensors multiply, and the time of the first step.

    python benchmarks/scaling.py                                   # docs/performance.md's tables
    python benchmarks/scaling.py --size 1e6 --tensors 10 --family lion --first-layers 1

Three parts, ours compiled:

- sizes: from 1 M to 1 B parameters in GPT-2's 148 tensors;
- tensors: from 10 to 3000 matrices with the same number of parameters in all;
- first: what the first step of a fresh process takes, with nothing compiled before (cold) and with the kernels of an
  earlier process (warm); once alone and once with all that comes before it from the start of Python on, but for the
  making of the parameters.

Times of sizes and tensors are medians, each optimizer in turn with torch's fused AdamW alone, so that the largest model
that fits into memory is as large as can be.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import console
import measure
import torch
import typer
from measure import Parameters, Shapes

SIZES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9)
TENSORS = (10, 30, 100, 300, 1000, 3000)
# Ours, with the bytes of state per parameter that the estimate of memory needs.
OPTIMIZERS = {"adamw": 8.0, "lion": 4.0, "adafactor": 0.1}
# Seconds that a first step may take without imports.
LIMITS = {"cold": 6.0, "warm": 1.5}
# Timed steps of the smallest model, at most.
_MOST = 1000


def matrices(count: int, size: float) -> Shapes:
    """So many equal matrices with about so many entries in all."""
    rows = max(2, round(math.sqrt(size / count)))
    columns = max(2, round(size / count / rows))
    return {f"layer.{i}.weight": (rows, columns) for i in range(count)}


def needed(size: float, state: float) -> float:
    """Bytes: parameters, gradients, state of ours and of torch's AdamW; and what steps need in between."""
    return size * (4 + 4 + state + 8) + 1e9


def compare(shapes: Shapes, name: str, repeats: int, least_seconds: float, memory: float) -> dict[str, Any]:
    """Time one of ours in turn with torch's fused AdamW."""
    import candidates

    size = measure.entries(shapes)
    row: dict[str, Any] = {"optimizer": name, "numel": size, "tensors": len(shapes)}
    short = needed(size, OPTIMIZERS.get(name, 16.0)) - memory
    if short > 0:
        return row | {"skipped": f"{short / 1e9:.1f} GB of memory short"}
    params = Parameters(shapes)
    members = [candidates.base(torch.float32), candidates.ours(name)]
    optimizers = {member.label: member.make(params) for member in members}
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.step()
    steps = {label: optimizer.step for label, optimizer in optimizers.items()}
    times = measure.in_turn(steps, _MOST, least_seconds, least=repeats)
    base, ours = (measure.summary(times[member.label]) for member in members)
    ratio = ours["median_ms"] / base["median_ms"]
    return (
        row
        | {"median_ms": ours["median_ms"], "base_median_ms": base["median_ms"], "ratio": ratio}
        | {"repeats": base["repeats"], "busy": measure.busy(base)}
    )


def comparisons(
    shapes: list[Shapes], family: list[str], repeats: int, least_seconds: float, memory: float
) -> Iterator[dict[str, Any]]:
    """A row for every model and optimizer."""
    for each in shapes:
        for name in family:
            row = compare(each, name, repeats, least_seconds, memory)
            measure.trim()
            text = row.get("skipped") or f"{row['median_ms']:.2f} ms, {row['ratio']:.2f} of torch's AdamW"
            console.ERR.print(f"{row['numel'] / 1e6:.1f} M in {row['tensors']}: {name}: {text}", highlight=False)
            yield row


# -- the first step --------------------------------------------------------------------------------------------------


def first_step(job: dict[str, Any]) -> dict[str, float]:
    """Time the first step in this process, which has not imported the package yet."""
    import candidates

    imported = time.time() - job["begun"]
    torch.set_num_threads(job["threads"])
    params = Parameters(measure.gpt2_shapes(job["layers"], vocab=job["vocab"]))
    optimizer = candidates.ours(job["name"]).make(params)
    first = measure.seconds(optimizer.step)
    return {"first_step_s": first, "second_step_s": measure.seconds(optimizer.step), "import_s": imported}


def first_steps(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's first step, cold and warm, in processes of their own."""
    row: dict[str, Any] = {"optimizer": name}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"HFOPTIM_CACHE": f"{cache}/hfoptim", "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}
        for state in LIMITS:
            found = measure.child(__file__, {**job, "name": name, "begun": time.time()}, environment)
            if "error" in found:
                return row | {"error": found["error"]}
            row |= {state: found, f"{state}_kept": found["first_step_s"] <= LIMITS[state]}
    return row


# -- the command -----------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    """Print the three parts."""
    number, verdict = measure.digits, {True: "yes", False: "NO", None: None}
    for part in ("sizes", "tensors"):
        console.table(
            {"sizes": "Parameters in 148 tensors", "tensors": "Tensors"}[part],
            ("optimizer", "parameters, M", "tensors", "ms", "torch AdamW fused, ms", "ratio"),
            [
                [
                    *(row["optimizer"], number(row["numel"] / 1e6, 1), row["tensors"]),
                    *(number(row.get("median_ms")), number(row.get("base_median_ms")), number(row.get("ratio"))),
                ]
                for row in result[part]
            ],
        )
    rows = []
    for row in result["first"]:
        if "error" in row:
            console.not_measured(row["optimizer"], row["error"])
            continue
        cells = [row["optimizer"]]
        for state in LIMITS:
            found = row[state]
            with_imports = number(found["first_step_s"] + found["import_s"])
            cells += [number(found["first_step_s"]), with_imports, verdict[row[f"{state}_kept"]]]
        rows.append(cells)
    columns = [f"{state} {what}" for state in LIMITS for what in ("s", "with imports, s", "kept")]
    console.table("The first step of a process", ("optimizer", *columns), rows)


def main(
    size: Annotated[list[float] | None, typer.Option(help="parameters; default 1e6 to 1e9")] = None,
    tensors: Annotated[list[int] | None, typer.Option(help="numbers of tensors; default 10 to 3000")] = None,
    tensors_size: Annotated[float, typer.Option(help="parameters in those tensors")] = 3e7,
    family: Annotated[list[str] | None, typer.Option(help="ours; default adamw, lion, adafactor")] = None,
    first: Annotated[list[str] | None, typer.Option(help="whose first step is timed; default all")] = None,
    first_layers: Annotated[int, typer.Option(help="transformer blocks for the first step")] = 12,
    first_vocab: Annotated[int, typer.Option(help="rows of the embedding for the first step")] = 50257,
    repeats: Annotated[int, typer.Option(help="timed steps of each, at least")] = 15,
    least_seconds: Annotated[
        float, typer.Option(help="seconds of a row, at least: small models take more steps")
    ] = 2.0,
    memory: Annotated[float, typer.Option(help="GB that may be used; 0: what is free")] = 0.0,
    threads: Annotated[int, typer.Option(help="threads; 0 leaves torch's choice")] = 0,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "scaling.json",
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Time steps of growing models, of many tensors, and first steps."""
    if child is not None:
        measure.serve(first_step, child)
        return
    import candidates

    if threads:
        torch.set_num_threads(threads)
    limit = memory * 1e9 if memory else 0.95 * measure.available_memory()
    chosen = family or list(OPTIMIZERS)
    result: dict[str, Any] = {"about": measure.about(), "sizes": [], "tensors": [], "first": []}
    parts = {
        "sizes": [measure.gpt2_of(each) for each in size or SIZES],
        "tensors": [matrices(count, tensors_size) for count in tensors or TENSORS],
    }
    for part, models in parts.items():
        for row in comparisons(models, chosen, repeats, least_seconds, limit):
            result[part].append(row)
            measure.write(output, "scaling", result)
    job = {"layers": first_layers, "vocab": first_vocab, "threads": torch.get_num_threads()}
    for name in first or candidates.names()[0]:
        console.ERR.print(f"first step: {name}", highlight=False)
        result["first"].append(first_steps(name, job))
        measure.write(output, "scaling", result)
    show(result)


if __name__ == "__main__":
    typer.run(main)
