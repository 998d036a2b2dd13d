"""benchmarks/scale_model.py: what it says of a step on so many ranks is what the ranks do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run, run_ranks

TESTS = Path(__file__).resolve().parent
PATHS = [TESTS.parent / "benchmarks"]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def costs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any, Any]:
    """The number of ranks; what the first of them counted; what was counted without them."""
    if torch.__version__ < "2.7":
        pytest.skip("the traffic is that of torch's present FSDP2")
    folder, ranks = tmp_path_factory.mktemp("scale"), request.param
    script = TESTS / "scale_worker.py"
    run_ranks(script, str(folder), str(ranks), "real", ranks=ranks, output=folder, timeout=400, paths=PATHS)
    code, said = run(
        script, str(folder), str(ranks), "paper", output=folder / "said.txt", timeout=300, paths=PATHS, RANK="0"
    )
    assert code == 0, said
    return ranks, *(json.loads((folder / f"{how}.json").read_text()) for how in ("real", "paper"))


def test_the_first_rank_sends_receives_and_keeps_what_was_predicted(costs: tuple[int, Any, Any]) -> None:
    ranks, real, paper = costs
    assert set(real) == set(paper)
    for name, cost in real.items():
        for what in ("collectives", "state", "parameters"):
            assert cost[what] == paper[name][what], (name, what)
        assert all(size == ranks for _, size, _, _ in cost["collectives"])


def test_traffic_by_hand(costs: tuple[int, Any, Any]) -> None:
    """Of AdamW none; of Muon a gradient and a momentum and a weight to the owner, the last two back."""
    ranks, real, paper = costs
    assert real["adamw"]["collectives"] == []
    entries = 8 * 64 * 64
    sent = sum(each[2] for each in paper["muon, even"]["collectives"])
    assert sent == (3 + 2) * 4 * entries / ranks * (ranks - 1) / ranks
    assert [each[0] for each in real["lamb"]["collectives"]] == ["all-reduce"] * len(real["lamb"]["collectives"])
    assert real["prodigy"]["collectives"][0][2] == 2 * (ranks - 1) / ranks * 2 * 4


def test_traffic_of_divided_matrices_by_hand(costs: tuple[int, Any, Any]) -> None:
    """Each rank sends what it stepped, filled up to the largest share, to all others, and whether it failed."""
    ranks, real, _ = costs
    shapes = [(64, 32), (32, 64), (33, 32), *[(64, 64)] * 8]
    shares = [0] * ranks
    for rows, columns in sorted(shapes, key=lambda shape: -shape[0] * shape[1]):
        shares[shares.index(min(shares))] += 4 * rows * columns
    sent = (ranks - 1) * (max(shares) + 16.0)
    assert real["muon, ddp"]["collectives"] == [["all-gather", ranks, sent, sent]]
    assert real["muon, ddp"]["products"] == real["muon"]["products"]


def test_arithmetic_by_hand(costs: tuple[int, Any, Any]) -> None:
    """Newton-Schulz of square matrices: three products in each of five iterations, over the matrices that are owned."""
    ranks, _, paper = costs
    assert paper["muon, even"]["products"] == 8 / ranks * 5 * 3 * 2 * 64**3
