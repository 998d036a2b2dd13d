"""PCGrad: the gradients of several losses as one."""

from __future__ import annotations

import numpy as np
import peers
import pytest
import torch

from hfoptim.training.pcgrad import pc_backward


def make():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, dtype=torch.float64, generator=generator)) for n in (3, 4, 2, 5)]


def losses_of(params, number):
    """Losses that pull into different directions; the third parameter is in the first loss alone, the last in none."""
    one, two, three, _ = params
    terms = [(one**2).sum() + (two.sin()).sum() + three.sum(), ((one - 3) ** 2).sum() - two.sum()]
    terms += [-one.sum() - (two**3).sum(), (one * one.roll(1)).sum() + (two - 1).abs().sum()]
    return terms[:number]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_follows_pytorch_optimizer(reduction):
    mine, other = make(), make()
    pc_backward(losses_of(mine, 2), mine, reduction)
    peer = peers.load("pytorch_optimizer.PCGrad")(torch.optim.SGD(other, lr=0.1), reduction=reduction)
    peer.pc_backward(losses_of(other, 2))
    for ours, theirs in zip(mine[:3], other[:3], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)
    assert mine[3].grad is None


@pytest.mark.parametrize("step", [0, 1, 7])
def test_many_losses_in_the_order_of_the_step(step):
    params = make()
    first = [
        np.concatenate([np.zeros(p.numel()) if g is None else g.numpy() for p, g in zip(params, of_loss, strict=True)])
        for of_loss in (torch.autograd.grad(loss, params, allow_unused=True) for loss in losses_of(params, 4))
    ]
    generator = torch.Generator().manual_seed(step)
    expected = np.zeros_like(first[0])
    conflicts = 0
    for i in range(4):
        own = first[i].copy()
        for j in torch.randperm(4, generator=generator).tolist():
            product = own @ first[j]
            if j != i and product < 0:
                own -= product / (first[j] @ first[j]) * first[j]
                conflicts += 1
        expected += own
    assert conflicts > 2
    pc_backward(losses_of(params, 4), params, "sum", step=step)
    got = np.concatenate([np.zeros(p.numel()) if p.grad is None else p.grad.numpy() for p in params])
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_losses_that_agree_are_added_up_and_what_was_there_is_replaced():
    params = make()
    for param in params:
        param.grad = torch.full_like(param, 7.0)
    one = params[0]
    pc_backward([one.sum(), 2 * one.sum()], params, "sum")
    torch.testing.assert_close(one.grad, torch.full_like(one, 3.0))
    assert params[1].grad is None


def test_the_order_depends_on_seed_and_step():
    found = set()
    for step, seed in ((0, 0), (0, 1), (1, 0), (2, 0), (3, 0)):
        params = make()
        pc_backward(losses_of(params, 4), params, step=step, seed=seed)
        again = make()
        pc_backward(losses_of(again, 4), again, step=step, seed=seed)
        assert torch.equal(params[0].grad, again[0].grad)
        found.add(tuple(params[0].grad.tolist()))
    assert len(found) > 1


def test_mistakes():
    params = make()
    with pytest.raises(ValueError, match="losses is empty"):
        pc_backward([], params)
    with pytest.raises(ValueError, match="reduction='max'"):
        pc_backward(losses_of(params, 2), params, "max")
    with pytest.raises(ValueError, match="step=-1"):
        pc_backward(losses_of(params, 2), params, step=-1)
