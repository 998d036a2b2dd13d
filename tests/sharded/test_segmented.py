"""Flattened parameters stepped with their shapes: as on one process, by few collectives, and never on a guess."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

import hfoptim
from hfoptim.engine.distributed import segment_lists
from hfoptim.engine.distributed.segments import spans_of

WORKER = Path(__file__).resolve().parent / "flat_worker.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("segmented")
    run_ranks(WORKER, str(folder), "{rank}", "2", ranks=2, output=folder, timeout=300)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("what", ["distances", "options", "resumed"])
def test_weights_are_those_of_one_process(found: list[dict[str, Any]], what: str) -> None:
    for own in found:
        assert {case: far for case, far in own[what].items() if not far < 1e-12} == {}


def test_who_steps_what(found: list[dict[str, Any]]) -> None:
    assert (
        found[0]["kinds"]
        == found[1]["kinds"]
        == {
            # No weight decay, no ratio of norms.
            "lamb": ["SUMS", "SUMS", "ENTRIES", "ENTRIES", "ENTRIES"],
            "cadamw": ["SUMS"] * 5,
            # AdamW steps what is no matrix.
            "muon": ["OWNED", "OWNED", "ENTRIES", "ENTRIES", "ENTRIES"],
            "adafactor": ["OWNED", "OWNED", "SUMS", "SUMS", "OWNED"],
        }
    )


def test_what_a_step_communicates(found: list[dict[str, Any]]) -> None:
    assert (
        found[0]["collectives"]
        == found[1]["collectives"]
        == {
            # The norm of all gradients, and two norms of each tensor.
            "lamb": {"all_reduce": 3},
            "muon": {"all_to_all_single": 2},
            "prodigy": {"all_reduce": 1},
            "cadamw": {"all_reduce": 2},
        }
    )


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("of_other_ranks", "is of rank {rank} of 3, here is rank {rank} of 2"),
        ("of_whole_parameters", "is of parameters with their shapes, and DeepSpeed ZeRO has flattened them"),
        ("into_whole_parameters", "it goes on where it was saved"),
        ("failing", "no memory"),
        ("elsewhere", "1 parameters are not where DeepSpeed ZeRO was thought to have put them"),
        ("twice", "twice before all had been stepped once"),
        ("offloaded", "their shapes were not to be had: its offloading"),
        ("watched", "reports of its rules would be of these alone"),
        ("changed", "would be stepped by other ranks"),
    ],
)
def test_what_cannot_be_is_said_on_every_rank(found: list[dict[str, Any]], case: str, words: str) -> None:
    for rank, own in enumerate(found):
        assert words.format(rank=rank) in own["said"][case]


def test_spans_cover_a_parameter_once() -> None:
    assert spans_of(5, 9, 4, 4) == ((0, 0), (0, 3), (3, 4), (7, 2))
    assert spans_of(4, 4, 4, 2) == ((0, 0), (0, 4))
    assert spans_of(0, 3, 2, 4) == ((0, 2), (2, 1), (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("name", "shape", "taken"),
    [
        ("lamb", (4, 5), True),
        ("lars", (4, 5), True),
        ("novograd", (4, 5), True),
        ("adamw", (4, 5), False),
        ("muon", (4, 5), False),
        ("adafactor", (4, 5), False),  # means of rows
        ("adafactor", (5,), True),
        ("adam_mini", (4, 5), True),  # one second moment for all of it
        ("conda", (4, 5), False),
        ("amos", (4, 5), False),  # starts from a number that is made of the shape
        ("grokadamw", (4, 5), False),  # goes by its place
    ],
)
def test_what_goes_by_sums_over_the_whole(name: str, shape: tuple[int, ...], taken: bool) -> None:
    param = torch.nn.Parameter(torch.empty(shape))
    optimizer: Any = hfoptim.create_optimizer_v2([("block.0.up_proj.weight", param)], name, lr=0.1, weight_decay=0.1)
    plan = optimizer.plan_for(param, optimizer.param_groups[0])
    assert segment_lists.takes(plan) is taken
