"""Muon's step beside torch.optim.Muon's, in the arithmetic of each: ours in float32 by default, torch's in bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/muon.py [--width 256] [--repeats 7]

On a CPU whose products of 16-bit numbers are made by other instructions than its float32 ones, the arithmetic decides;
with equal dtypes the rest of the step does. Steps are timed in turn.
"""

from __future__ import annotations

import statistics
from typing import Annotated, Any

import console
import measure
import torch
import typer

import hfoptim


def optimizers(shapes: measure.Shapes) -> dict[str, Any]:
    """By label, each with parameters and gradients of its own."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}

    def ours(**options: Any) -> Any:
        return hfoptim.Muon([{"params": measure.Parameters(matrices).tensors, "use_muon": True}], lr=0.02, **options)

    return {
        "torch.optim.Muon": torch.optim.Muon(measure.Parameters(matrices).tensors, lr=0.02),
        'hfoptim, ns_dtype="bfloat16"': ours(ns_dtype="bfloat16"),
        "hfoptim": ours(),
    }


def main(
    width: Annotated[int, typer.Option(help="of one of GPT-2's layers, whose matrices are stepped")] = 256,
    repeats: Annotated[int, typer.Option(help="steps of each")] = 7,
) -> None:
    """Print a table of medians in milliseconds."""
    layer = {name: shape for name, shape in measure.gpt2_shapes(1, width).items() if ".h." in name}
    taken = optimizers(layer)
    for optimizer in taken.values():
        optimizer.step()  # makes state
    times = measure.in_turn({label: optimizer.step for label, optimizer in taken.items()}, repeats)
    middle = {label: statistics.median(seconds) for label, seconds in times.items()}
    console.table(
        f"matrices of a layer of GPT-2, width {width}, {torch.get_num_threads()} thread(s), medians of {repeats}",
        ("optimizer", "ms", "of torch's"),
        [(name, f"{1e3 * ms:.0f}", f"{ms / middle['torch.optim.Muon']:.3f}") for name, ms in middle.items()],
    )


if __name__ == "__main__":
    typer.run(main)
