"""GradientAccumulator on two processes, under torchrun and accelerate launch (see accumulation_worker.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def launch(command: list[str], mode: str, folder: Path) -> list[dict[str, Any]]:
    """Runs the worker on two processes and returns what each of them found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module, *arguments = [part.format(port=port) for part in command]
    worker = str(ROOT / "tests" / "accumulation_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", module, *arguments, worker, mode, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


TORCHRUN = ["torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "{port}"]
# On a machine without GPUs too: `--cpu --num_processes 2` starts one process only (accelerate#2741).
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "{port}"]


@pytest.mark.parametrize(("mode", "command"), [("ddp", TORCHRUN), ("accelerate", ACCELERATE)])
def test_two_processes_equal_one_big_batch_with_one_all_reduce_per_window(
    mode: str, command: list[str], tmp_path: Path
) -> None:
    results = launch(command, mode, tmp_path)
    assert len(results) == 2
    for result in results:
        assert result["windows"] == 3
        assert result["worst_difference"] <= 1e-12
        assert result["all_reduces_per_window"] == [1, 1, 1]
        assert result["all_reduces_of_a_plain_backward"] >= 1  # the counter does count what DDP reduces
        edges = {"reduced twice", "sync undecided", "sync=False", "mixed dtypes", "nothing anywhere", "sum", "DTensor"}
        assert set(result["checked"]) == (edges if mode == "ddp" else set())
    assert results[0]["parameters"] == results[1]["parameters"]
