"""Mixtures of experts of which each process has some, against one process that has all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experts_worker import NAMES, SUMS, WAYS
from ranks import run_ranks

TESTS = Path(__file__).resolve().parents[1]
# Norms, factors and bases of a whole parameter: those of a stack are not those of each expert.
OF_WHOLE_STACKS = {"lamb", "lamb clipped", "soap", "shampoo", "adafactor"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("experts")
    worker = TESTS / "sharded" / "experts_worker.py"
    run_ranks(
        *(worker, str(folder), "{rank}", "2"), ranks=2, output=folder, timeout=300, paths=[TESTS, TESTS / "optimizers"]
    )
    return [json.loads((folder / f"experts.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_divided_stacks(found: Any, name: str, way: str) -> None:
    for rank in found:
        assert rank["divided_stacks"][f"{name} {way}"] <= 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_experts_of_one_rank(found: Any, name: str, way: str) -> None:
    for rank in found:
        found_here = rank["own_experts"][f"{name} {way}"]
        if name not in SUMS:
            assert found_here <= 1e-12
        elif way == "fsdp2":
            assert "sums over all parameters, and parameter 'experts.0.down', parameter 'experts.0.up'" in found_here
            assert "are not the same on all ranks" in found_here
        else:
            assert "is not the same parameter everywhere" in found_here


@pytest.mark.parametrize("name", NAMES)
def test_what_is_of_each_expert_and_what_of_the_stack(found: Any, name: str) -> None:
    away = found[0]["each_on_its_own"][name]
    assert away > 1e-3 if name in OF_WHOLE_STACKS else away <= 1e-12
