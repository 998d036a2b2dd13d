"""GrokFast: its numbers."""

from __future__ import annotations

import peers
import pytest
import torch
from harness import assert_moved, feed, flattened, parameters, through_disk, values
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


class Author(nn.Module):
    """Parameters, and a filter of the author's over them."""

    def __init__(self, params, filtered, **options):
        super().__init__()
        for name, param in params.items():
            self.register_parameter(name, param)
        self.filtered, self.options, self.gradients = filtered, options, None

    def filter(self):
        self.gradients = self.filtered(self, self.gradients, **self.options)


@pytest.mark.parametrize("filter_type", ["mean", "sum"])
@pytest.mark.parametrize("warmup", [True, False])
def test_follows_gradfilter_ma(filter_type, warmup):
    """Over several windows, and from a checkpoint."""
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    options = {"lamb": 0.5, "window_size": 7, "filter_type": filter_type, "warmup": warmup}
    gradfilter = peers.load("pytorch_optimizer.optimizer.grokfast.gradfilter_ma")
    author = Author(other, lambda *args, **given: gradfilter(*args, **given), **options)
    start = values(mine)
    ours, theirs = (torch.optim.SGD(params.values(), lr=1e-2, momentum=0.9) for params in (mine, other))
    ours = GrokFast(ours, **options)
    for t in range(1, 31):
        feed(mine, t, follow=other)
        feed(other, t)
        author.filter()
        if t == 12:
            saved = ours.state_dict()
            ours = GrokFast(torch.optim.SGD(mine.values(), lr=1e-2, momentum=0.9))
            ours.load_state_dict(through_disk(saved))
        ours.step()
        theirs.step()
        assert (flattened(mine) - flattened(other)).abs().max() < 1e-13
    assert_moved(mine, start)


def test_a_step_without_gradient_is_one_of_zeros_in_the_window():
    param = nn.Parameter(torch.zeros(1))
    optimizer = GrokFast(torch.optim.SGD([param], lr=1.0), lamb=1.0, filter_type="sum", window_size=2, warmup=False)
    for grad in (1.0, None, 4.0):
        param.grad = None if grad is None else torch.tensor([grad])
        optimizer.step()
    assert param.grad.item() == 8.0  # 1 has left the window
    optimizer.param_groups[0]["grokfast_window_size"] = 3
    with pytest.raises(ValueError, match="grokfast_window_size=3"):
        optimizer.step()


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
