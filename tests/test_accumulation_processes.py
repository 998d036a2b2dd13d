"""GradientAccumulator on two processes, as torchrun and as Accelerate have them (see accumulation_worker.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import run_ranks

WORKER = Path(__file__).with_name("accumulation_worker.py")


@pytest.mark.parametrize("mode", ["ddp", "accelerate"])
def test_two_processes_equal_one_big_batch_with_one_all_reduce_per_window(mode: str, tmp_path: Path) -> None:
    run_ranks(WORKER, mode, str(tmp_path), ranks=2, output=tmp_path, timeout=240)
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(results) == 2
    for result in results:
        assert result["windows"] == 3
        assert result["worst_difference"] <= 1e-12
        assert result["all_reduces_per_window"] == [1, 1, 1]
        assert result["all_reduces_of_a_plain_backward"] >= 1  # the counter does count what DDP reduces
        edges = {"reduced twice", "sync undecided", "sync=False", "mixed dtypes", "nothing anywhere", "sum", "DTensor"}
        assert set(result["checked"]) == (edges if mode == "ddp" else set())
    assert results[0]["parameters"] == results[1]["parameters"]
