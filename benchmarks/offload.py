"""The step that ZeRO-Offload takes on the CPU: AdamW on one flat part in float32, ours and DeepSpeed's, in turn.

    PATH=$PWD/.venv-providers/bin:$PATH python benchmarks/offload.py     # after make .venv-providers/.ready

DeepSpeedCPUAdam is what DeepSpeed takes for `"offload_optimizer": {"device": "cpu"}` unless an optimizer is given; one
of ours that is given takes its place (docs/distributed.md). All get the same part, gradient and options, and torch's
fused AdamW tells how busy the machine was. Distances are of the parameters after the timed steps.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import console
import measure
import torch
import typer
from torch.optim import Optimizer

import hfoptim

SIZES = (1e6, 1e7, 4e7)
OPTIONS: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None)


def optimizers(size: int) -> dict[str, Optimizer]:
    """Of equal parts with equal gradients."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    drawn = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=drawn)
    gradient = torch.randn(size, generator=drawn)

    def part() -> torch.nn.Parameter:
        made = torch.nn.Parameter(start.clone())
        made.grad = gradient.clone()
        return made

    return {
        "ours": hfoptim.create_optimizer_v2([part()], "adamw", **OPTIONS),
        "DeepSpeedCPUAdam": DeepSpeedCPUAdam([part()], adamw_mode=True, **OPTIONS),
        "torch fused": torch.optim.AdamW([part()], fused=True, **OPTIONS),
    }


def measured(size: int, repeats: int) -> dict[str, Any]:
    """Times by optimizer, and how far apart their parameters are at the end, as a share of the movement."""
    made = optimizers(size)
    for optimizer in made.values():  # states, kernels
        for _ in range(2):
            optimizer.step()
    times = measure.in_turn({name: optimizer.step for name, optimizer in made.items()}, repeats)
    ends = {name: optimizer.param_groups[0]["params"][0].detach() for name, optimizer in made.items()}
    start = torch.randn(size, generator=torch.Generator().manual_seed(0))
    moved = (ends["torch fused"] - start).abs().max()
    return {
        "size": size,
        "times": {name: measure.summary(each) for name, each in times.items()},
        "distance": {name: float((end - ends["torch fused"]).abs().max() / moved) for name, end in ends.items()},
    }


@app.command()
def main(
    size: Annotated[list[float] | None, typer.Option(help="entries of the part; several times for several")] = None,
    repeats: Annotated[int, typer.Option(help="timed steps of each")] = 30,
) -> None:
    """Measure and print."""
    rows = []
    for entries in size or SIZES:
        found = measured(int(entries), repeats)
        base = found["times"]["torch fused"]
        for name, times in found["times"].items():
            cells = [f"{times['median_ms']:.2f}", f"{times['min_ms']:.2f}"]
            share = times["min_ms"] / found["times"]["ours"]["min_ms"]
            busy = "busy" if measure.busy(base) else ""
            rows.append([f"{name}, {entries:.0e}", *cells, f"{share:.2f}", f"{found['distance'][name]:.0e}", busy])
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    title = f"a step on one flat part, float32, {threads} thread(s)"
    console.table(title, ["optimizer, entries", "median ms", "min ms", "ours = 1", "distance", "machine"], rows)


if __name__ == "__main__":
    app()
