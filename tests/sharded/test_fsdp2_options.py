"""FSDP2 with activation checkpointing, offload to the CPU, mixed precision, and optimizers made before sharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family import outcomes
from options_worker import STEPS, TASKS, Network, kinds_of, make
from torch import nn

MEASURED = [task.__name__ for task in TASKS if task.__name__ != "built_before"]
# What sums up over ranks may be a rounding off: in double precision, in float32, and a step of a bfloat16 weight.
TOLERANCES = {"mixed_precision": 2e-6, "low_precision": 2e-2}


@pytest.fixture(scope="module")
def found(folder: Path, which: str) -> Any:
    first, second = outcomes("options", folder, which)
    assert first == second
    return first


@pytest.mark.parametrize("task", MEASURED)
def test_steps_are_those_of_one_process(found: Any, which: str, task: str) -> None:
    for kind in kinds_of(which):
        # No sum over ranks is part of AdamW's step.
        assert found[task][kind] <= (0.0 if kind.startswith("adamw") else TOLERANCES.get(task, 1e-12)), kind


def test_an_optimizer_of_replaced_parameters_says_so(found: Any, which: str) -> None:
    for kind in kinds_of(which):
        said = found["built_before"][kind]
        if torch.__version__ < "2.13":
            assert said == "nothing"  # torch does not mark them
        else:
            assert said.startswith("parameter 'embed.weight' is no longer in the model"), kind
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
