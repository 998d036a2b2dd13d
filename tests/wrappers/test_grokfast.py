"""GrokFast: its numbers."""

from __future__ import annotations

import peers
import pytest
import torch
from harness import assert_moved, feed, flattened, parameters, values
from torch import nn

import hfoptim
from hfoptim import GrokFast

NAMES = ("vector", "matrix", "conv")


@pytest.mark.parametrize(
    "make",
    [lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9), lambda params: hfoptim.AdamW(params, lr=1e-2)],
)
def test_follows_gradfilter_ema(make):
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    model = nn.Module()
    for name, param in other.items():
        model.register_parameter(name, param)
    start = values(mine)
    ours, theirs, averages = GrokFast(make(list(mine.values())), alpha=0.9, lamb=1.5), make(list(other.values())), None
    for t in range(1, 31):
        feed(mine, t, follow=other)
        feed(other, t)
        averages = peers.load("pytorch_optimizer.optimizer.grokfast.gradfilter_ema")(
            model, averages, alpha=0.9, lamb=1.5
        )
        ours.step()
        theirs.step()
        assert (flattened(mine) - flattened(other)).abs().max() < 1e-13
    assert_moved(mine, start)


def test_the_first_steps_may_go_without_it():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours = GrokFast(torch.optim.SGD(mine.values(), lr=1e-2), after_step=3)
    alone = torch.optim.SGD(other.values(), lr=1e-2)
    same = []
    for t in range(1, 6):
        feed(mine, t)
        feed(other, t)
        ours.step()
        alone.step()
        same.append(torch.equal(flattened(mine), flattened(other)))
    assert same == [True, True, True, False, False]


def test_sparse_gradients_are_refused():
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = GrokFast(torch.optim.SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse gradient"):
        optimizer.step()
