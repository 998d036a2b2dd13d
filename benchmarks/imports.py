"""What `import schedules` and `import hfoptim` cost beyond `import torch`: fresh interpreters, taken in turn.

    python benchmarks/imports.py [ROUNDS]

Bytecode is written to a temporary folder by a first round that does not count, as pip does when it installs a package.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMITS = {"schedules": 0.1, "hfoptim": 0.2}  # seconds beyond torch
TIMED = """
import time
clocks = time.perf_counter, time.process_time
start = [clock() for clock in clocks]
import torch
middle = [clock() for clock in clocks]
import {}
end = [clock() for clock in clocks]
print([[b - a for a, b in zip(*pair)] for pair in ((start, middle), (middle, end))])
"""


def seconds(package: str, cache: str) -> list[list[float]]:
    """Wall-clock and processor time of `import torch`, and of `import package` after it, in a fresh interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", TIMED.format(package)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    times: list[list[float]] = json.loads(done.stdout)
    return times


def main(rounds: int) -> None:
    found: dict[str, list[list[list[float]]]] = {package: [] for package in LIMITS}
    with tempfile.TemporaryDirectory() as cache:
        for package in LIMITS:
            seconds(package, cache)
        for _ in range(rounds):
            for package in LIMITS:
                found[package].append(seconds(package, cache))
    print(f"medians of {rounds} rounds, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}; seconds")
    print("| import | wall clock | processor | allowed |")
    print("| --- | --- | --- | --- |")
    torch_too = [times[0] for rounds_of in found.values() for times in rounds_of]
    print("| `torch` | {:.3f} | {:.3f} | |".format(*map(statistics.median, zip(*torch_too, strict=True))))
    for package, limit in LIMITS.items():
        wall, processor = map(statistics.median, zip(*(times[1] for times in found[package]), strict=True))
        print(f"| `{package}` after it | {wall:.3f} | {processor:.3f} | {limit} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
