"""A Trainer with FSDP2: the weights of DDP, clipped and accumulated, and checkpoints from which it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

NAMES = ("adamw", "muon", "prodigy", "adafactor", "schedulefree_adamw")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_it_trains_as_with_ddp_and_resumes(form: str, tmp_path: Path) -> None:
    worker = Path(__file__).with_name("fsdp2_worker.py")
    cases = [f"{name}:{form}" for name in NAMES]
    run_ranks(worker, str(tmp_path), *cases, ranks=2, output=tmp_path, timeout=500)
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    for name in NAMES:
        ours = first[name]
        assert ours["fsdp2"]["weights"] == second[name]["fsdp2"]["weights"], name
        same(ours["fsdp2"]["weights"], ours["ddp"]["weights"], name)
        same([ours["fsdp2"]["norms"]], [ours["ddp"]["norms"]], name, 1e-5)  # 4.57 rounds what it logs
        same(ours["resumed"]["weights"], ours["fsdp2"]["weights"], name)
        whole = {"optimizer.bin" if form.startswith("FULL") else "optimizer_0", "scheduler.pt", "trainer_state.json"}
        assert whole <= set(ours["files"]), name
        assert ours["lacks"] == [], name


def same(ours: list[list[float]], theirs: list[list[float]], name: str, within: float = 1e-9) -> None:
    for one, other in zip(ours, theirs, strict=True):
        near = {"rtol": within, "atol": within, "msg": lambda said: f"{name}: {said}"}
        torch.testing.assert_close(torch.tensor(one).double(), torch.tensor(other).double(), **near)
