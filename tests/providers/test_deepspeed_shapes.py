"""Under DeepSpeed's ZeRO, on two processes: rules that look at whole tensors give the weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import zero_shapes_worker
from ranks import run_ranks

pytest.importorskip("deepspeed")

WORKER = Path(__file__).resolve().parent / "zero_shapes_worker.py"
# Sums over tensors, matrices, rows, sums over all parameters, other weights to evaluate, noise by an entry's place.
NAMES = ["lamb", "muon", "adafactor", "prodigy", "adamw_schedule_free", "soap", "noisy_sgd"]
# In bfloat16 with weights in float32 beside it, clipped, with batches in two pieces, saved and resumed in the middle
# (of schedule-free, with the weights to evaluate in the model), and by ZeRO-3 in several parts for each group.
CASES = [
    *(f"lamb:{way}" for way in ("bf16", "clip", "pieces", "resume")),
    *("muon:bf16", "muon:resume", "adafactor:clip", "prodigy:pieces", "prodigy:resume"),
    *("adamw_schedule_free:bf16", "adamw_schedule_free:resume"),
]
IN_PARTS = ["muon:small", "prodigy:small"]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_weights_are_those_of_one_process(tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    # On a CPU, what ZeRO-3 offloads is where it would be anyway.
    cases = [*NAMES, *CASES, *([*IN_PARTS, "lamb:offload"] if stage == 3 else [])]
    refused = {"lamb:wrapped": "ValueError: Lamb is inside of Lookahead and takes means or norms of whole tensors"}
    if stage < 3:
        refused["lamb:offload"] = "their shapes were not to be had: its offloading"
    run_ranks(WORKER, str(tmp_path), str(stage), *cases, *refused, ranks=2, output=tmp_path, timeout=600)
    start = dict(zero_shapes_worker.Network().named_parameters())
    for case in cases:
        first, second = (torch.load(tmp_path / f"{case}.{rank}.pt") for rank in range(2))
        assert not isinstance(first, str), (case, first)
        name, _, way = case.partition(":")
        ways: dict[str, dict[str, Any]] = {"bf16": {"low": True}, "clip": {"clip": 0.05}, "pieces": {"pieces": 2}}
        options = ways.get(way, {})
        want = zero_shapes_worker.alone(name, **options)
        moved = max(float((want[key] - start[key]).abs().max()) for key in want)
        assert moved > 0
        for key, value in want.items():
            assert torch.equal(first[key], second[key]), (case, key)
            # Of sums in another order an entry may be one rounding off.
            near = (2e-6 * moved * torch.ones_like(value)).maximum(torch.finfo(value.dtype).eps * value.abs())
            assert bool(((first[key] - value).abs() <= near).all()), (case, key)
    for case, said in refused.items():
        found = [torch.load(tmp_path / f"{case}.{rank}.pt") for rank in range(2)]
        assert found[0] == found[1]
        assert said in found[0], (case, found[0])
