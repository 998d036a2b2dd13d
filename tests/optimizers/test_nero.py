"""Nero beside pytorch_optimizer's, from balanced weights; and what the projection leaves."""

from __future__ import annotations

import peers
import torch
from harness import assert_goes_on_like, parameters

import hfoptim


def balanced(names):
    params = parameters(names, torch.float64)
    with torch.no_grad():
        for param in params.values():
            if param.ndim > 1:
                rows = param.flatten(1)
                rows = rows - rows.mean(1, keepdim=True)
                param.copy_((rows / rows.norm(dim=1, keepdim=True)).view_as(param))
    return params


def test_it_takes_pytorch_optimizers_steps_from_balanced_weights():
    # 4.1 adds eps in other places, too; of this size, where does not matter.
    names = ("matrix", "row", "conv", "vector", "scalar")
    mine, other = balanced(names), balanced(names)
    ours = hfoptim.Nero(list(mine.items()), eps=1e-30)
    theirs = peers.load("pytorch_optimizer.Nero")(list(other.values()), eps=1e-30)
    assert_goes_on_like(ours, mine, theirs, other, range(1, 51), 1e-9)


def test_weights_are_balanced_after_every_step_and_biases_are_not():
    params = parameters(("matrix", "conv", "column", "vector"), torch.float64)
    optimizer = hfoptim.Nero(list(params.items()))
    for _ in range(3):
        for param in params.values():
            param.grad = torch.randn_like(param)
        optimizer.step()
        for name in ("matrix", "conv"):
            rows = params[name].detach().flatten(1)
            torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows), dtype=torch.float64))
            torch.testing.assert_close(rows.mean(1), torch.zeros(len(rows), dtype=torch.float64))
    assert float(params["column"].detach().norm()) > 0


def test_biases_step_by_the_scale_they_begin_with():
    zero, one = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = hfoptim.Nero([zero, one], lr=0.1, bias_scale=0.05)
    before = one.detach().clone()
    for param in (zero, one):
        param.grad = torch.tensor([1.0, -2.0, 3.0])
    optimizer.step()
    torch.testing.assert_close(zero.detach(), -0.1 * 0.05 * zero.grad.sign())
    torch.testing.assert_close(before - one.detach(), 0.1 * 2.0 * one.grad.sign())
