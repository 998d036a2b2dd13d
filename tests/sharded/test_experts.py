"""Mixtures of experts of which each process has some, against one process that has all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experts_worker import SUMS, WAYS, names_of
from family import outcomes

# Norms, factors and bases of a whole parameter: those of a stack are not those of each expert.
OF_WHOLE_STACKS = {"lamb", "lamb clipped", "soap", "shampoo", "adafactor"}


@pytest.fixture(scope="module")
def found(folder: Path, which: str) -> Any:
    return outcomes("experts", folder, which)


def test_divided_stacks(found: Any, which: str) -> None:
    for rank in found:
        assert rank["divided_stacks"].keys() == {f"{name} {way}" for name in names_of(which) for way in WAYS}
        assert {key: away for key, away in rank["divided_stacks"].items() if not away <= 1e-12} == {}


@pytest.mark.parametrize("way", WAYS)
def test_experts_of_one_rank(found: Any, which: str, way: str) -> None:
    for rank in found:
        for name in names_of(which):
            of_name = rank["own_experts"][f"{name} {way}"]
            if name not in SUMS:
                assert of_name <= 1e-12, name
            elif way == "fsdp2":
                assert "sums over all parameters, and parameter 'experts.0.down', parameter 'experts.0.up'" in of_name
                assert "are not the same on all ranks" in of_name
            else:
                assert "is not the same parameter everywhere" in of_name


def test_what_is_of_each_expert_and_what_of_the_stack(found: Any, which: str) -> None:
    for name in names_of(which):
        away = found[0]["each_on_its_own"][name]
        assert away > 1e-3 if name in OF_WHOLE_STACKS else away <= 1e-12, name


def test_checkpoints_go_from_many_processes_to_one_and_back(found: Any, which: str) -> None:
    for rank in found:
        assert rank["from_many_to_one"].keys() == set(names_of(which))
        assert {name: away for name, away in rank["from_many_to_one"].items() if not away <= 1e-12} == {}
