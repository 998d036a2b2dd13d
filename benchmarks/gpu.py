"""Our kernels on a GPU: right and fast, in a few minutes. Needs torch and Triton, nothing of it installed.

    python benchmarks/gpu.py --output DIR --minutes 8
    python benchmarks/gpu.py --output DIR --dry-run      # tiny, on a CPU, in Triton's interpreter: whether it runs

Parts, each with its share of the time: (1) machine: the rate of copies, what a launch costs; (2) compiling: all kernels
in 16 processes; (3) right: every optimizer in every form against the loop on the CPU, with unaligned gradients, on
another stream, with a NaN; (4) elementwise: against torch's fused and multi-tensor AdamW and the rate of copies; (5)
reductions: rules with sums, Adafactor; (6) formats: 8 bits, 4 bits, Kahan, beside bitsandbytes and torchao where they
are; (7) matrices: symmetric products beside torch's, Muon beside
torch.optim.Muon; (8) host: the host's time and the launches of a step, of a model and of
a LoRA.

DIR/gpu.json is written after each row. What time did not suffice for is named in `left_out` of its part. Every row says
in `by` what took our steps: generated kernels, or torch's operations.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# A bare checkout: the package beside this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def run(output: Path, minutes: float, dry: bool, names: list[str], parts: list[str]) -> dict[str, Any]:
    """Measure, and write what is found.

    Args:
        output: the folder for gpu.json.
        minutes: how long it may take in all.
        dry: whether on a CPU, in Triton's interpreter.
        names: of the registry; all if there are none.
        parts: which; all if there are none.
    """
    import candidates
    import measure
    import torch
    from device_clock import Device
    from generated import put_in
    from gpu_parts import PARTS, Bench

    start = time.perf_counter()
    bench = Bench(Device("cpu" if dry else "cuda"), names or candidates.names()[0])
    if dry:
        bench.sizes, bench.adapters, bench.copied, bench.repeats, bench.processes = (1e3,), 4, 1 << 12, 1, 2
        bench.forms = ("fp32", "fp32, 8-bit state")
    device = "none: a dry run in Triton's interpreter" if dry else torch.cuda.get_device_name()
    result: dict[str, Any] = {"about": measure.about(device=device, dry=dry, minutes=minutes), "parts": {}}
    share = 0.0
    for name, (jobs, part) in PARTS.items():
        share += part
        if parts and name not in parts:
            continue
        bench.until = start + 60 * minutes * share
        found: dict[str, Any] = {"rows": [], "left_out": []}
        result["parts"][name] = found
        began = time.perf_counter()
        with put_in() if dry else nullcontext():
            for row, job in jobs(bench):
                if time.perf_counter() > bench.until:
                    found["left_out"].append(row)
                    continue
                try:
                    row |= job()
                except Exception as error:  # the others are worth having
                    row["error"] = measure.reason(error)
                found["rows"].append(row)
                gc.collect()
                if not dry:
                    torch.cuda.empty_cache()
                measure.write(output / "gpu.json", "gpu", result)
        found["seconds"] = time.perf_counter() - began
        measure.write(output / "gpu.json", "gpu", result)
        wrong = sum("error" in row for row in found["rows"])
        print(f"{name}: {len(found['rows'])} rows, {wrong} with errors, {len(found['left_out'])} left out", flush=True)
    return result


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the folder for gpu.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="how long it may take in all; default 8")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on a CPU, in Triton's interpreter")
    parser.add_argument("--name", action="append", default=[], help="an optimizer of the registry; default all")
    parser.add_argument("--part", action="append", default=[], help="one part; default all")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        import torch

        if not torch.cuda.is_available():
            parser.error("no CUDA device; --dry-run needs none")
    run(given.output, given.minutes, given.dry_run, given.name, given.part)


if __name__ == "__main__":
    main()
