"""Memory of a step as `hfoptim.predict_memory` says it before, and as it is: parameters, gradients, state, the rest.

    python benchmarks/memory_prediction.py                       # ten optimizers in four formats; ten minutes
    python benchmarks/memory_prediction.py --family lion --layers 1

Each optimizer runs in a fresh process. Measured is by how much the resident memory of the process is higher at its
height during the third step than before there was a model. A tiny model is stepped first, so that libraries and kernels
are loaded by then. Needs Linux.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import console
import measure
import torch
import typer

import hfoptim
from hfoptim.factory.memory import predict_memory

OPTIMIZERS = ("adamw", "lion", "sgd", "adafactor", "lamb", "ademamix", "adan", "adam_mini", "muon", "galore_adamw")
# The parameters' dtype, and options.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "bfloat16": ("bfloat16", {}),
    "8bit": ("float32", {"state_dtype": "8bit"}),
    "4bit, master weights": ("bfloat16", {"state_dtype": "4bit", "master_weights": 16}),
}


def make(job: dict[str, Any], device: str) -> Any:
    """The model of a job."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=job["layers"], n_embd=job["width"], n_head=job["width"] // 64, vocab_size=job["vocab"], n_positions=256
    )
    with torch.device(device):
        return GPT2LMHeadModel(config).to(measure.DTYPES[FORMATS[job["form"]][0]])


def steps(model: Any, job: dict[str, Any], count: int) -> Any:
    """An optimizer that has taken steps, and the gradients for the next."""
    optimizer = hfoptim.create_optimizer_v2(model, job["name"], **FORMATS[job["form"]][1])
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-3)
    for _ in range(count):
        optimizer.step()
    return optimizer


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Measure an optimizer in all formats in this process."""
    torch.set_num_threads(job["threads"])
    return {form: run_form({**job, "form": form}) for form in FORMATS}


def run_form(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one candidate."""
    predicted = predict_memory(make(job, "meta"), job["name"], device="cpu", **FORMATS[job["form"]][1])
    steps(make({**job, "width": 128, "vocab": 512, "layers": 1}, "cpu"), job, 2)
    measure.trim()
    before = measure.resident()
    model = make(job, "cpu")
    optimizer = steps(model, job, 2)
    measure.trim()
    held = measure.resident()
    measured = held - before + measure.peak_above(optimizer.step)
    return {
        "state_bytes": measure.state_bytes(optimizer),
        "predicted_state_bytes": predicted.state_bytes,
        "peak_bytes": measured,
        "predicted_peak_bytes": predicted.peak,
        "off": predicted.peak / measured - 1.0,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    console.table(
        "Memory of a step, predicted and measured",
        ("optimizer", "format", "state, MB", "predicted", "peak, MB", "predicted", "off"),
        [
            [
                *(row["name"], row["form"]),
                *(f"{row[key] / 1e6:.1f}" for key in ("state_bytes", "predicted_state_bytes")),
                *(f"{row[key] / 1e6:.1f}" for key in ("peak_bytes", "predicted_peak_bytes")),
                f"{row['off']:+.1%}",
            ]
            for row in rows
            if "error" not in row
        ],
    )
    for row in rows:
        if "error" in row:
            console.not_measured(row["name"], row["error"])


def main(
    layers: Annotated[int, typer.Option(help="transformer blocks")] = 2,
    vocab: Annotated[int, typer.Option(help="rows of the embedding")] = 8192,
    width: Annotated[int, typer.Option(help="columns of the embedding")] = 768,
    family: Annotated[list[str] | None, typer.Option(help="an optimizer; default ten")] = None,
    time_limit: Annotated[float, typer.Option(help="seconds that an optimizer may take")] = 600.0,
    threads: Annotated[int, typer.Option(help="threads")] = 1,
    output: Annotated[Path, typer.Option(help="the JSON file to write")] = measure.RESULTS / "memory_prediction.json",
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Compare the memory that is predicted with what is measured."""
    if child is not None:
        measure.serve(run, child)
        return
    rows: list[dict[str, Any]] = []
    for name in family or OPTIMIZERS:
        job = {"name": name, "layers": layers, "width": width, "vocab": vocab, "threads": threads}
        found = measure.child(__file__, job, measure.RETURN_MEMORY, time_limit)
        rows += [{**job, "form": form, **found.get(form, found)} for form in FORMATS]
        measure.write(output, "memory_prediction", {"about": measure.about(), "rows": rows})
    show(rows)


if __name__ == "__main__":
    typer.run(main)
