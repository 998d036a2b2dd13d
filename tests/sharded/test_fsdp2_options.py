"""FSDP2 with activation checkpointing, offload to the CPU, mixed precision, and optimizers made before sharding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from options_worker import OPTIMIZERS, STEPS, TASKS, Network, make
from ranks import run_ranks
from torch import nn

TESTS = Path(__file__).resolve().parents[1]
MEASURED = [task.__name__ for task in TASKS if task.__name__ != "built_before"]
# What sums up over ranks may be a rounding off: in double precision, in float32, and a step of a bfloat16 weight.
TOLERANCES = {"mixed_precision": 2e-6, "low_precision": 2e-2}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("options")
    worker = TESTS / "sharded" / "options_worker.py"
    run_ranks(
        *(worker, str(folder), "{rank}", "2"), ranks=2, output=folder, timeout=300, paths=[TESTS, TESTS / "optimizers"]
    )
    first, second = (json.loads((folder / f"options.{rank}.json").read_text()) for rank in range(2))
    assert first == second
    return first


@pytest.mark.parametrize("task", MEASURED)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_are_those_of_one_process(found: Any, task: str, kind: str) -> None:
    away = found[task][kind]
    if kind.startswith("adamw"):  # no sum over ranks is part of it
        assert away == 0.0
    else:
        assert away <= TOLERANCES.get(task, 1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_of_replaced_parameters_says_so(found: Any, kind: str) -> None:
    said = found["built_before"][kind]
    if torch.__version__ < "2.13":
        assert said == "nothing"  # torch does not mark them
    else:
        assert said.startswith("parameter 'embed.weight' is no longer in the model")
        assert said.endswith("make the optimizer after fully_shard")


def test_the_steps_of_one_process_move_the_weights() -> None:
    model, before = Network(), Network()
    before.load_state_dict(model.state_dict())
    optimizer = make("adamw", model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(9)), torch.arange(9) % 5).backward()
        optimizer.step()
    for param, start in zip(model.parameters(), before.parameters(), strict=True):
        assert float((param - start).abs().max()) > 1e-3
