"""Memory of an optimizer: bytes of state per parameter, and what one step needs on top at its peak.

    python benchmarks/memory.py                                  # the table of docs/performance.md
    python benchmarks/memory.py --layers 1 --vocab 512 --family lion

Each candidate runs in a fresh process. The peak is the largest resident memory during a step, less what parameters,
gradients and state take: after two steps, the third is watched (VmHWM, begun anew through /proc/self/clear_refs). The C
library is told to give memory back as soon as it is free (MALLOC_MMAP_THRESHOLD_): what it held back would hide what
a step allocates. Needs Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import candidates
import console
import measure
import torch
import typer
from candidates import CODED, COMPRESSED, Candidate
from measure import Parameters

import hfoptim

# Most bytes per parameter that AdamW's coded state may take.
LIMITS = {"8bit": 2.1, "4bit": 1.1}


def jobs(name: str, dtype: str, runners: list[str], with_peers: bool) -> Iterator[dict[str, Any]]:
    """What is measured for an optimizer of the registry: ours by form and runner, and the peers'."""
    theirs = candidates.peers(name, measure.DTYPES[dtype]) if with_peers else []
    few = [form for form in CODED if any(peer.form == form for peer in theirs)]
    for form in ["full", *(["bfloat16", *CODED] if name in COMPRESSED else few)]:
        for runner in runners:
            candidate = candidates.ours(name, form, runner)
            yield {"name": name, "candidate": candidate.label, "form": form, "runner": runner, "dtype": dtype}
    for peer in theirs:
        yield {"name": name, "candidate": peer.label, "form": peer.form, "runner": None, "dtype": dtype}


def find(job: dict[str, Any]) -> Candidate:
    """The candidate of a job."""
    if job["runner"] is not None:
        return candidates.ours(job["name"], job["form"], job["runner"])
    return next(c for c in candidates.peers(job["name"], measure.DTYPES[job["dtype"]]) if c.label == job["candidate"])


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one candidate in this process."""
    torch.set_num_threads(job["threads"])
    params = Parameters(measure.gpt2_shapes(job["layers"], job["width"], job["vocab"]), measure.DTYPES[job["dtype"]])
    with candidates.quiet():
        optimizer = find(job).make(params)
        for _ in range(2):
            optimizer.step()
            params.attach()
        peak = measure.peak_above(optimizer.step)
    return {
        "state_bytes": measure.state_bytes(optimizer) / params.numel,
        "peak_bytes": peak,
        "peak_bytes_per_parameter": peak / params.numel,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows, optimizer by optimizer."""
    verdict = {True: "yes", False: "NO", None: None}
    console.table(
        "Memory of optimizers",
        ("candidate", "optimizer", "runner", "state, bytes/parameter", "peak of a step, MB", "limit", "kept"),
        [
            [
                *(row["candidate"], row["name"], row["runner"], measure.digits(row["state_bytes"], 3)),
                *(measure.digits(row["peak_bytes"] / 1e6, 1), row["limit"], verdict[row["kept"]]),
            ]
            for row in rows
            if "error" not in row
        ],
    )
    for row in rows:
        if "error" in row:
            console.not_measured(row["candidate"], row["error"])


def main(
    layers: Annotated[int, typer.Option(help="transformer blocks")] = 12,
    vocab: Annotated[int, typer.Option(help="rows of the embedding")] = 50257,
    width: Annotated[int, typer.Option(help="columns of the embedding")] = 768,
    matrix_layers: Annotated[int, typer.Option(help="blocks where rules multiply matrices, which takes seconds")] = 1,
    family: Annotated[list[str] | None, typer.Option(help="an optimizer of the registry; default all")] = None,
    runner: Annotated[list[str] | None, typer.Option(help="compiled, foreach or loop; default all")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
    peers: Annotated[bool, typer.Option(help="measure the peers' optimizers, too")] = True,
    time_limit: Annotated[float, typer.Option(help="seconds that a candidate may take")] = 600.0,
    threads: Annotated[int, typer.Option(help="threads; 0 leaves torch's choice")] = 0,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "memory.json",
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the memory of optimizers."""
    if child is not None:
        measure.serve(run, child)
        return
    able, left_out = candidates.names()
    chosen = [hfoptim.get_optimizer_info(name).name for name in family] if family else able
    todo = [job for name in chosen for job in jobs(name, dtype, runner or list(candidates.RUNNERS), peers)]
    rows: list[dict[str, Any]] = []
    about = measure.about(numel=measure.entries(measure.gpt2_shapes(layers, width, vocab)))
    for done, job in enumerate(todo, start=1):
        console.ERR.print(f"{done} of {len(todo)}: {job['candidate']}", markup=False, highlight=False)
        multiplies = hfoptim.get_optimizer_info(job["name"]).hidden_matrices
        job |= {"layers": min(layers, matrix_layers) if multiplies else layers}
        job |= {"width": width, "vocab": vocab}
        job["threads"] = threads or torch.get_num_threads()
        found = measure.child(__file__, job, measure.RETURN_MEMORY, time_limit)
        row = {**job, "limit": None, "kept": None, **found}
        if job["name"] == "adamw" and job["runner"] is not None and "error" not in found:
            row["limit"] = LIMITS.get(job["form"])
            row["kept"] = None if row["limit"] is None else row["state_bytes"] <= row["limit"]
        rows.append(row)
        measure.write(output, "memory", {"about": about, "skipped": left_out, "rows": rows})
    show(rows)


if __name__ == "__main__":
    typer.run(main)
