"""Every optimizer under FSDP2 and DDP, on real processes: what worker.py finds there, against one process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from ranks import run_ranks

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS / "optimizers"))

from cases import ENTRIES  # noqa: E402

VARIANTS = {f"{entry.name}-{name}" for entry in ENTRIES for name in entry.variants}
TAKEN = {entry.name for entry in ENTRIES if entry.name != "adahessian"}


def launch(folder: Path, ranks: int, *tasks: str) -> dict[str, list[Any]]:
    """Run tasks of the worker on so many processes: what each of them found, by task."""
    paths = [TESTS.parent, TESTS, TESTS / "optimizers"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    outputs = [folder / f"{'-'.join(tasks)}.{rank}.txt" for rank in range(ranks)]
    worker = [sys.executable, str(TESTS / "sharded" / "worker.py"), str(folder)]
    commands = [[*worker, str(rank), str(ranks), *tasks] for rank in range(ranks)]
    run_ranks(commands, [environment] * ranks, outputs, timeout=400)
    return {task: [json.loads((folder / f"{task}.{rank}.json").read_text()) for rank in range(ranks)] for task in tasks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, list[Any]]:
    """What two processes found."""
    return launch(folder, 2, "every_optimizer", "by_columns", "kinds", "training", "save")


def test_every_optimizer_takes_the_steps_of_one_process(two: dict[str, list[Any]]) -> None:
    first, second = two["every_optimizer"]
    assert first == second
    assert set(first["refused"]) <= {"adahessian-decay", "adahessian-conv", "prodigy-sliced"}
    assert set(first["collectives"]) | set(first["refused"]) == VARIANTS
    # The same along the last dimension.
    assert set(two["by_columns"][0]) == TAKEN


# Collectives of a step, for 13 parameters. docs/distributed.md says where they come from.
COLLECTIVES = {
    "adamw-decay": {},
    "lion-decay": {},
    "adopt-decoupled": {},
    "adamw_schedule_free-decay": {},
    # Sums over all parameters: one all-reduce.
    "adam_weight_decay-global_clipnorm": {"allreduce_": 1},
    "prodigy-decoupled": {"allreduce_": 1},
    # One for each reduction of a rule, whatever the number of parameters.
    "adamw-caution": {"allreduce_": 1},
    "adam_weight_decay-clipnorm": {"allreduce_": 1},
    "novograd-decay": {"allreduce_": 1},
    "lars-momentum": {"allreduce_": 2},
    "lamb-unclipped": {"allreduce_": 2},
    "lamb-decay": {"allreduce_": 3},
    "adafactor-relative": {"allreduce_": 6},  # 4 for matrices, 2 for vectors
    # To the owners and back, for 2-D matrices and for flattened kernels.
    "muon-decay": {"alltoall_base_": 4},
}


@pytest.mark.parametrize("key", COLLECTIVES)
def test_the_collectives_of_a_step_do_not_depend_on_the_number_of_parameters(
    two: dict[str, list[Any]], key: str
) -> None:
    assert two["every_optimizer"][0]["collectives"][key] == COLLECTIVES[key]


def test_rules_of_every_kind_and_every_precision(two: dict[str, list[Any]]) -> None:
    for found in two["kinds"]:
        rules = found["rules"]
        assert set(rules["reductions"]) == {"allreduce_"}
        # What cannot be done part by part goes to owners.
        assert rules["reversed_rows"] == rules["last_rows"] == {"alltoall_base_": 2}
        assert rules["cubed"] == {}
        assert set(found["several_meshes"]) == {"allreduce_"}
        assert found["precisions"] == 10


def test_training_with_fsdp2_and_ddp_is_training_on_one_process(two: dict[str, list[Any]]) -> None:
    assert [set(names) for names in two["training"]] == [TAKEN, TAKEN]


def test_checkpoints_go_from_two_processes_to_one_and_back(two: dict[str, list[Any]], folder: Path) -> None:
    assert set(two["save"][0]) == TAKEN
    assert set(launch(folder, 1, "resume_on_one")["resume_on_one"][0]) == TAKEN
    assert set(launch(folder, 2, "resume_on_two")["resume_on_two"][0]) == TAKEN


@pytest.mark.slow
def test_meshes_of_two_dimensions(tmp_path: Path) -> None:
    found = launch(tmp_path, 4, "meshes_of_two_dimensions")["meshes_of_two_dimensions"]
    assert set(found[0]) == TAKEN
    hybrid, divided_twice, _ = found[0]["muon"]
    assert set(hybrid) == {"alltoall_base_"}
    assert set(divided_twice) == {"all_gather_into_tensor"}
