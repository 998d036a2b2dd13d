"""Time of one optimizer step, here and in a checkout of another commit, in turn.

    python benchmarks/against.py --checkout ../before adamw lion lamb adafactor prodigy muon

Each side runs in a process of its own that imports its own hfoptim; both step the same parameters, one after the other,
so that a noisy machine is noisy for both. Reported are medians, both sides, and the median of the ratios pair by pair.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import console
import measure
import torch
import typer

HERE = Path(__file__).resolve().parent.parent

SHAPES = {
    "gpt2": lambda: measure.gpt2_shapes(layers=4, vocab=8192),
    "lora": lambda: measure.adapter_shapes(64),
    "small": lambda: measure.equal_shapes(256, 64, 64),
}


class Side:
    """One checkout's process, which steps when it is told to."""

    def __init__(self, checkout: Path, name: str, shapes: str, threads: int, fused: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--serve", f"--shapes={shapes}", f"--fused={fused}", name]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.asks, self.answers = self.process.stdin, self.process.stdout
        where = self.answers.readline().strip()
        if Path(where) != checkout.resolve():
            raise RuntimeError(f"{name}: hfoptim was imported from {where or 'nowhere'}, expected {checkout}")

    def seconds(self) -> float:
        """The time of one more step."""
        self.asks.write("step\n")
        self.asks.flush()
        return float(self.answers.readline())

    def close(self) -> None:
        self.asks.close()
        self.process.wait()


def serve(name: str, shapes: str, fused: str) -> None:
    """Step once for every line that comes in, and say how long it took."""
    import hfoptim

    print(Path(hfoptim.__file__).resolve().parent.parent, flush=True)
    params = measure.Parameters(SHAPES[shapes](), torch.float32)
    options = {} if fused == "default" else {"fused": fused == "yes"}
    optimizer = hfoptim.create_optimizer_v2(list(params.named.items()), name, weight_decay=0.01, **options)
    for _ in range(5):
        optimizer.step()
    for _ in sys.stdin:
        print(measure.seconds(optimizer.step), flush=True)


def main(
    names: Annotated[list[str], typer.Argument(help="optimizers by name")],
    checkout: Annotated[Path, typer.Option(help="the other commit")] = HERE,
    repeats: Annotated[int, typer.Option(help="steps of each side")] = 60,
    shapes: Annotated[str, typer.Option(help=f"one of {', '.join(SHAPES)}")] = "gpt2",
    fused: Annotated[str, typer.Option(help="default, yes or no")] = "default",
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    serving: Annotated[bool, typer.Option("--serve", hidden=True)] = False,
) -> None:
    """Print a row for each name."""
    if serving:
        serve(names[0], shapes, fused)
        return
    rows = []
    for name in names:
        sides = [Side(where, name, shapes, threads, fused) for where in (checkout, HERE)]
        pairs = [[side.seconds() for side in sides] for _ in range(repeats)]
        for side in sides:
            side.close()
        before, after = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
        ratio = statistics.median(now / then for then, now in pairs)
        rows.append((name, f"{before:.2f}", f"{after:.2f}", f"{ratio:.3f}"))
    console.table(
        f"Milliseconds of a step, {shapes}, fused={fused}, {threads} threads, medians of {repeats} in turn",
        ("optimizer", f"{checkout.name}", "here", "here / there"),
        rows,
    )


if __name__ == "__main__":
    typer.run(main)
