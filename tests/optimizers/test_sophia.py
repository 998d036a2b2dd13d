"""Sophia's two estimates of the Hessian, in a loop as users have it."""

from __future__ import annotations

import warnings

import pytest
import torch
from harness import through_disk
from torch import nn
from torch.nn.functional import cross_entropy

import hfoptim


def test_an_estimate_is_the_average_of_squares_wherever_it_is_made():
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = hfoptim.SophiaG([param], lr=0.1, betas=(0.9, 0.5), rho=0.5, weight_decay=0.0, bs=4)
    param.grad = torch.full_like(param, 2.0)
    optimizer.update_hessian()  # before the first step
    torch.testing.assert_close(optimizer.state[param]["hessian"], torch.full((3, 2), 2.0))
    torch.testing.assert_close(param.detach(), torch.ones(3, 2))
    param.grad = torch.full_like(param, -4.0)
    optimizer.step()  # m = -0.4; m / (0.5 * 4 * 2) = -0.1
    torch.testing.assert_close(param.detach(), torch.full((3, 2), 1.01))
    optimizer.update_hessian()
    torch.testing.assert_close(optimizer.state[param]["hessian"], torch.full((3, 2), 9.0))


def test_estimates_are_saved_and_resumed():
    def run(optimizer, model, steps):
        for t in steps:
            torch.manual_seed(t)
            logits = model(torch.randn(8, 4))
            labels = torch.distributions.Categorical(logits=logits).sample() if t % 3 == 0 else torch.arange(8) % 3
            optimizer.zero_grad()
            cross_entropy(logits, labels).backward()
            optimizer.update_hessian() if t % 3 == 0 else optimizer.step()

    def made():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, hfoptim.SophiaG(model.parameters(), lr=1e-2, bs=8)

    (model, optimizer), (other, resumed) = made(), made()
    run(optimizer, model, range(7))
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    assert resumed.param_groups[0]["since"] == 0
    run(optimizer, model, range(7, 14))
    run(resumed, other, range(7, 14))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_hundred_steps_without_an_estimate_are_told_of():
    param = nn.Parameter(torch.ones(2))
    optimizer = hfoptim.SophiaG([param])

    def steps(count):
        for _ in range(count):
            param.grad = torch.ones(2)
            optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(100)
        optimizer.update_hessian()
        steps(100)
    with pytest.warns(UserWarning, match="100 steps without an estimate"):
        steps(1)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_the_diagonal_of_a_diagonal_hessian_is_found_whole():
    curved = torch.tensor([1.0, 4.0, 0.5])
    param = nn.Parameter(torch.ones(3))
    options = {"hessian_distribution": "rademacher", "betas": (0.0, 0.0), "p": 10.0, "update_period": 2}
    optimizer = hfoptim.SophiaH([param], lr=1.0, **options)
    (0.5 * (curved * param * param).sum()).backward(create_graph=True)
    optimizer.step()  # a step of Newton's
    torch.testing.assert_close(param.detach(), torch.zeros(3))
    torch.testing.assert_close(optimizer.state[param]["hessian_moment"], curved)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_normal_vectors_find_it_on_average():
    param = nn.Parameter(torch.ones(2))
    optimizer = hfoptim.SophiaH([param], betas=(0.9, 0.0), n_samples=400)
    (param[0] ** 2 + 3.0 * param[0] * param[1] + 2.0 * param[1] ** 2).backward(create_graph=True)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[param]["hessian"], torch.tensor([2.0, 4.0]), rtol=0.3, atol=0.0)
