"""A compiled step takes the plain step's: torch's compiler leaves the engine alone, which has kernels of its own."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, values
from matrix_rows import ROWS, every_row, parameters

import hfoptim

BY_NAME = {row.name: row for row in ROWS}


def compiled_like_plain(row):
    torch._dynamo.reset()
    mine, other = parameters(torch.float64), parameters(torch.float64)
    ours, theirs = row.make(mine, lr=row.lr), row.make(other, lr=row.lr)
    ours.step = torch.compile(ours.step, backend="eager")
    row.advance(ours, mine, 2)
    settled = torch._dynamo.utils.counters["frames"]["total"]
    row.advance(ours, mine, 2)
    row.advance(theirs, other, 4)
    return values(mine), values(other), settled


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_is_the_plain_one_and_compiles_nothing_later():
    mine, other, settled = compiled_like_plain(BY_NAME["adamw"])
    assert_same(mine, other)
    assert torch._dynamo.utils.counters["frames"]["total"] == settled > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@every_row
def test_every_compiled_step_is_the_plain_one(row):
    mine, other, _ = compiled_like_plain(row)
    for name, value in other.items():  # torch's own computes bias corrections in float32 then
        torch.testing.assert_close(mine[name], value, rtol=1e-9 if row.ours else 1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step_may_have_the_optimizer_inside():
    torch._dynamo.reset()
    mine, other = parameters(), parameters()
    ours, theirs = hfoptim.Lion(mine.values(), lr=1e-2), hfoptim.Lion(other.values(), lr=1e-2)

    def step(params, optimizer):
        loss = sum((param**2).sum() for param in params.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(step, backend="eager")
    for _ in range(3):
        compiled(mine, ours)
        step(other, theirs)
    assert_same(values(mine), values(other))
