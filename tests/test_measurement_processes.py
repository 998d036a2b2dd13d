"""Steps measured on several processes, with DDP, FSDP2 and meshes of two dimensions: the numbers of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

TESTS = Path(__file__).resolve().parent


def launch(folder: Path, task: str, ranks: int) -> list[Any]:
    """Run a task of the worker on so many processes: what each of them found."""
    folder.mkdir(exist_ok=True)
    run_ranks(TESTS / "measurement_worker.py", task, str(folder), ranks=ranks, output=folder, timeout=300)
    return [json.loads((folder / f"{task}.{rank}.json").read_text()) for rank in range(ranks)]


def same(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    assert found == {key: pytest.approx(value, rel=tolerance) for key, value in expected.items()}


def test_ddp_and_fsdp2(tmp_path: Path) -> None:
    first, second = launch(tmp_path, "training", 2)
    assert first == second
    for name, (alone, sharded, replicated) in first.items():
        assert len(alone) == 3
        # Whose codes are rounded, every last bit of a gradient may count.
        tolerance = 1e-3 if name == "lamb in 8 bits" else 1e-9
        for step, expected in enumerate(alone):
            ratios = (
                {f"trust_ratio_{which}" for which in ("min", "mean", "max")} if name[:4] in ("lamb", "lars") else set()
            )
            assert {key for key in expected if "/" not in key} == {
                *("grad_norm", "update_rms", "update_to_weight"),
                *ratios,
            }
            same(sharded[step], expected, tolerance)
            same(replicated[step], expected, tolerance)


def test_the_trainer_logs_the_same_on_two_processes(tmp_path: Path) -> None:
    (alone,) = launch(tmp_path / "one", "trainer", 1)
    first, second = launch(tmp_path / "two", "trainer", 2)
    assert (alone["world"], first["world"]) == (1, 2)
    assert len(alone["log"]) == 3
    assert first["sharded"] == 0.5
    assert first["log"] == second["log"]
    for found, expected in zip(first["log"], alone["log"], strict=True):
        same(found, expected, 1e-4)


@pytest.mark.slow
def test_meshes_of_two_dimensions(tmp_path: Path) -> None:
    for plain, divided in launch(tmp_path, "meshes", 4):
        assert len(plain) == 12
        same(divided, plain, 1e-12)
