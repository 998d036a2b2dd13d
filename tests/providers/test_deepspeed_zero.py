"""Under DeepSpeed's ZeRO, on two processes, optimizers are those of one process, or say no before the first step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zero_worker
from ranks import run_ranks

pytest.importorskip("deepspeed")

HERE = Path(__file__).resolve().parent

# Name -> what its refusal says; None for what trains.
NAMES = {
    "adamw": None,
    "lion": None,
    "laprop": None,
    "lookahead_adamw": None,
    "lamb": None,
    "muon": None,
    "adafactor": None,
    "prodigy": None,
    "cadamw": None,
    "adamw_schedule_free": None,
    "lookahead_lamb": "Lamb is inside of LookaheadLamb and takes means or norms of whole tensors, and DeepSpeed ZeRO",
    "sam_adamw": "DeepSpeed takes its steps with one gradient, and SAMAdam needs two",
}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_in_a_trainer(tmp_path: Path, stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    worker = HERE / "zero_worker.py"
    run_ranks(worker, str(tmp_path), str(stage), *NAMES, ranks=2, output=tmp_path, timeout=500)
    for name, refusal in NAMES.items():
        first, second = (torch.load(tmp_path / f"{name}.{rank}.pt") for rank in range(2))
        if refusal is not None:
            assert first == second
            assert refusal in first
            continue
        want = zero_worker.train(name, tmp_path / "alone", 1, None)
        start = dict(zero_worker.Regression().named_parameters())
        for key, value in want.items():
            assert torch.equal(first[key], second[key])
            moved = (value - start[key]).abs().max()
            assert moved > 0
            # Of sums in another order an entry may be two roundings off.
            far = (first[key] - value).abs()
            assert (far <= (2e-6 * moved).clamp(min=2.4e-7 * value.abs())).all(), (name, key)
