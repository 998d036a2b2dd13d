"""Checkpoints of every form of state, on 1, 2 and 4 processes: written at once or beside the steps, and loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format_worker import FORMS, LOADED_ON
from ranks import run_ranks

TESTS = Path(__file__).resolve().parents[1]
# After a change of ranks sums are added up in another order: how far the weights may be, as a share of the movement,
# but for 2 % that got another code, or were rounded to the other side; and those.
APART, FARTHEST = 1e-4, 0.05


def launch(folder: Path, ranks: int, which: str, task: str) -> list[Any]:
    run_ranks(
        *(TESTS / "sharded" / "format_worker.py", str(folder), "{rank}", str(ranks), which, task),
        ranks=ranks,
        output=folder,
        timeout=240 if which == "few" else 1200,
        paths=[TESTS, TESTS / "optimizers"],
    )
    return [json.loads((folder / f"{task}-{ranks}.{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.skipif(torch.__version__ < "2.7", reason="fully_shard has ignored_params from torch 2.7 on")
@pytest.mark.parametrize("which", ["few", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS)])
def test_runs_go_on_on_any_number_of_processes(tmp_path: Path, which: str) -> None:
    saved_on, loaded_on = ((2,), (1, 2)) if which == "few" else ((1, 2, 4), (1, 2, 4))
    for ranks in saved_on:
        saved = launch(tmp_path, ranks, which, "save")[0]
    cases = {f"{name}, {form}" for form, names in saved.items() for name in names}
    for ranks in loaded_on:
        for found in launch(tmp_path, ranks, which, "resume"):
            assert found["wrong"] == []
            before = [number for number in saved_on if ranks in LOADED_ON[number]]
            assert set(found["looked"]) == {f"{case}, {number} -> {ranks}" for case in cases for number in before}
            far = {key: far for key, far in found["apart"].items() if far[1] > APART or far[0] > FARTHEST}
            assert not far
