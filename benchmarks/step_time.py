"""Time of one optimizer step against the peers: GPT-2 124M shapes, all candidates interleaved in one run.

    python benchmarks/step_time.py                      # the table of the README
    python benchmarks/step_time.py --layers 1 --vocab 512 --repeats 3     # a quick look

Every family (AdamW, Lion, Adafactor, SGD) is timed together with torch's fused AdamW, step by step in turn, so that a
noisy machine is noisy for all of them. Reported are medians, both sides, and the ratio to that AdamW.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import hfoptim

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from peers import load

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
BASE = "torch AdamW fused"


def gpt2_shapes(layers: int = 12, width: int = 768, vocab: int = 50257, context: int = 1024) -> list[tuple[int, ...]]:
    """The shapes of GPT-2's parameters, the tied head counted once: 124 M entries in 148 tensors by default."""
    block = [(width,)] * 2 + [(width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [(width,)] * 2 + [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocab, width), (context, width), *block * layers, (width,), (width,)]


def candidates() -> dict[str, dict[str, Make]]:
    """Family -> name -> optimizer over given parameters, all with weight decay where they take one."""
    decay: dict[str, Any] = {"weight_decay": 0.1}
    fixed: dict[str, Any] = {"lr": 1e-4, "relative_step": False, "scale_parameter": False}
    sgd: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9, "nesterov": True}
    return {
        "AdamW": {
            "hfoptim AdamW compiled": lambda p: hfoptim.AdamW(p, lr=1e-4, fused=True, **decay),
            "hfoptim AdamW foreach": lambda p: hfoptim.AdamW(p, lr=1e-4, foreach=True, **decay),
            "hfoptim AdamW loop": lambda p: hfoptim.AdamW(p, lr=1e-4, foreach=False, **decay),
            "torch AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True, **decay),
            "torch AdamW loop": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=False, **decay),
            "timm AdamWLegacy": lambda p: load("timm.optim.adamw.AdamWLegacy")(p, lr=1e-4, **decay),
            "pytorch_optimizer AdamW": lambda p: load("pytorch_optimizer.AdamW")(p, lr=1e-4, **decay),
            "optimi AdamW": lambda p: load("optimi.AdamW")(p, lr=1e-4, triton=False, **decay),
        },
        "Lion": {
            "hfoptim Lion compiled": lambda p: hfoptim.Lion(p, fused=True, **decay),
            "hfoptim Lion foreach": lambda p: hfoptim.Lion(p, foreach=True, **decay),
            "lion-pytorch Lion": lambda p: load("lion_pytorch.Lion")(p, lr=1e-4, **decay),
            "timm Lion": lambda p: load("timm.optim.lion.Lion")(p, lr=1e-4, **decay),
            "pytorch_optimizer Lion": lambda p: load("pytorch_optimizer.Lion")(p, lr=1e-4, **decay),
            "optimi Lion": lambda p: load("optimi.Lion")(p, lr=1e-4, triton=False, **decay),
        },
        "Adafactor": {
            "hfoptim Adafactor compiled": lambda p: hfoptim.Adafactor(p, fused=True, **fixed, **decay),
            "hfoptim Adafactor foreach": lambda p: hfoptim.Adafactor(p, foreach=True, **fixed, **decay),
            "transformers Adafactor": lambda p: load("transformers.Adafactor")(p, **fixed, **decay),
            "timm Adafactor": lambda p: load("timm.optim.adafactor.Adafactor")(p, lr=1e-4, **decay),
            "pytorch_optimizer AdaFactor": lambda p: load("pytorch_optimizer.AdaFactor")(p, **fixed, **decay),
            "torch Adafactor foreach": lambda p: torch.optim.Adafactor(p, lr=1e-4, foreach=True, **decay),
        },
        "SGD": {
            "hfoptim SGD compiled": lambda p: hfoptim.SGD(p, fused=True, **sgd, **decay),
            "hfoptim SGD foreach": lambda p: hfoptim.SGD(p, foreach=True, **sgd, **decay),
            "torch SGD fused": lambda p: torch.optim.SGD(p, fused=True, **sgd, **decay),
            "torch SGD foreach": lambda p: torch.optim.SGD(p, foreach=True, **sgd, **decay),
            "optimi SGD": lambda p: load("optimi.SGD")(p, lr=1e-4, momentum=0.9, triton=False, **decay),
        },
    }


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    """Parameters with gradients, random but the same every time."""
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in shapes:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        param.grad = torch.randn(shape, generator=generator) * 1e-3
        params.append(param)
    return params


def time_family(family: dict[str, Make], params: list[torch.nn.Parameter], repeats: int, note: str) -> list[dict]:
    """Time all candidates of a family in turn; one row each."""
    every: dict[str, Make] = {BASE: lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.1, fused=True), **family}
    steps, first = {}, {}
    for name, make in every.items():
        steps[name] = make(params).step
        start = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - start
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(repeats), description=note, console=Console(stderr=True)):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times[BASE])
    return [
        {
            "optimizer": name,
            "median_ms": 1e3 * statistics.median(ts),
            "min_ms": 1e3 * min(ts),
            "base_median_ms": 1e3 * base,
            "ratio_to_base": statistics.median(ts) / base,
            "first_step_s": first[name],
            "repeats": repeats,
        }
        for name, ts in times.items()
    ]


def main(
    layers: Annotated[int, typer.Option(help="transformer blocks")] = 12,
    vocab: Annotated[int, typer.Option(help="rows of the embedding")] = 50257,
    repeats: Annotated[int, typer.Option(help="timed steps of each candidate")] = 15,
    family: Annotated[list[str] | None, typer.Option(help="AdamW, Lion, Adafactor or SGD; default all")] = None,
    compiled: Annotated[bool, typer.Option(help="also time the compiled runner")] = True,
    threads: Annotated[int, typer.Option(help="threads; 0 leaves torch's choice")] = 0,
    output: Annotated[Path | None, typer.Option(help="write the rows to this JSON file")] = None,
) -> None:
    """Time optimizer steps against the peers."""
    if threads:
        torch.set_num_threads(threads)
    shapes = gpt2_shapes(layers=layers, vocab=vocab)
    params = parameters(shapes)
    numel = sum(p.numel() for p in params)
    families = candidates()
    rows: dict[str, list[dict]] = {}
    for name in family or families:
        chosen = {k: make for k, make in families[name].items() if compiled or not k.endswith("compiled")}
        rows[name] = time_family(chosen, params, repeats, name)
        gc.collect()
    head = f"{numel / 1e6:.1f} M parameters in {len(shapes)} float32 tensors, {torch.get_num_threads()} threads"
    for name, entries in rows.items():
        table = Table(title=f"{name}: {head}")
        for column in ("optimizer", "median ms", f"{BASE}, median ms", "ratio", "fastest ms", "first step s"):
            table.add_column(column, justify="left" if column == "optimizer" else "right")
        for row in sorted(entries, key=lambda r: r["median_ms"]):
            table.add_row(
                row["optimizer"],
                f"{row['median_ms']:.1f}",
                f"{row['base_median_ms']:.1f}",
                f"{row['ratio_to_base']:.2f}",
                f"{row['min_ms']:.1f}",
                f"{row['first_step_s']:.1f}",
            )
        Console(width=120).print(table)
    if output is not None:
        about = {"torch": torch.__version__, "machine": platform.machine(), "cores": os.cpu_count(), "numel": numel}
        output.write_text(json.dumps({"about": about, "families": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
