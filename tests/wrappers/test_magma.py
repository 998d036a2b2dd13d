"""Magma: its numbers, what it leaves out, and that it is a torch optimizer wherever one is wanted."""

from __future__ import annotations

import copy
import pickle

import peers
import pytest
import torch
from harness import assert_moved, assert_same, feed, flattened, parameters, through_disk, values
from torch import nn

import hfoptim
from hfoptim import Magma
from hfoptim.engine import storage

NAMES = ("vector", "matrix", "conv")
STEPS = range(1, 21)
# With a momentum in the state, under both names, and without one.
INNER = {
    "torch.AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    "torch.SGD": lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9),
    "torch.Adagrad": lambda params: torch.optim.Adagrad(params, lr=1e-2),
    "hfoptim.Lion": lambda params: hfoptim.Lion(params, lr=1e-3, weight_decay=0.1),
    "hfoptim.Lamb": lambda params: hfoptim.Lamb(params, lr=1e-2),
}
every_inner = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


def run(optimizer, params, steps=STEPS):
    for t in steps:
        feed(params, t)
        optimizer.step()


@every_inner
@pytest.mark.parametrize("options", [{}, {"tau": 0.5, "alignment": 0.5, "momentum": 0.5}], ids=str)
def test_follows_pytorch_optimizer(make, options):
    # With a probability of 1 there is nothing to draw. The peer's alignments are float32 numbers.
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    names = {"alignment": "alignment_ema", "momentum": "momentum_beta"}
    given = {names.get(name, name): value for name, value in options.items()}
    theirs = peers.load("pytorch_optimizer.Magma")(make(list(other.values())), mask_prob=1.0, **given)
    ours = Magma(make(list(mine.values())), keep=1.0, **options)
    for t in STEPS:
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
    way = (flattened(mine) - torch.cat([start[name].flatten() for name in mine])).abs().max()
    assert (flattened(mine) - flattened(other)).abs().max() < 1e-6 * way
    assert_moved(mine, start)


def test_updates_are_left_out_parameter_by_parameter():
    params = parameters(NAMES)
    optimizer = Magma(torch.optim.SGD(params.values(), lr=1e-2), keep=0.4)
    moves = []
    for t in range(1, 201):
        before = values(params)
        feed(params, t)
        optimizer.step()
        moves.append([not torch.equal(before[name], param.detach()) for name, param in params.items()])
    shares = torch.tensor(moves).double().mean(0)
    assert ((shares - 0.4).abs() < 0.12).all(), shares
    assert len({tuple(row) for row in moves}) == 8


def test_the_inner_state_goes_on_where_the_update_is_left_out():
    mine, other = parameters(NAMES), parameters(NAMES)
    start = values(mine)
    optimizer = Magma(hfoptim.Lion(mine.values(), lr=1e-3), keep=0.0)
    alone = hfoptim.Lion(other.values(), lr=0.0)
    run(optimizer, mine)
    run(alone, other)
    assert_same(values(mine), start)
    for one, two in zip(mine.values(), other.values(), strict=True):
        assert torch.equal(optimizer.state[one]["exp_avg"], alone.state[two]["exp_avg"])


@pytest.mark.parametrize("options", [{}, {"master_weights": 16}], ids=str)
def test_weights_in_bfloat16_keep_what_rounding_left(options):
    params = parameters(NAMES, torch.bfloat16)
    whole = {name: nn.Parameter(param.detach().float()) for name, param in params.items()}
    optimizer = Magma(hfoptim.AdamW(params.values(), lr=1e-4, **options), keep=0.5)
    exact = Magma(hfoptim.AdamW(whole.values(), lr=1e-4), keep=0.5)
    for t in STEPS:
        feed(params, t)
        for name, param in whole.items():
            param.grad = params[name].grad.float()
        optimizer.step()
        exact.step()
    # 20 steps of 1e-4 are below the spacing around 1, which is 1/128.
    for name, param in params.items():
        weight = storage.exact_weight(param.detach(), optimizer.residual_of(param))
        assert (weight - whole[name].detach()).abs().max() < 1e-4


def test_a_closure_gives_the_gradients():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (Magma(torch.optim.SGD(p.values(), lr=1e-2, momentum=0.9)) for p in (mine, other))
    for t in STEPS:
        feed(mine, t)
        ours.step()
        theirs.step(lambda t=t: feed(other, t))
    assert_same(values(mine), values(other))


def test_complex_parameters_are_refused():
    param = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = Magma(torch.optim.SGD([param], lr=1e-2))
    param.grad = torch.ones_like(param)
    with pytest.raises(TypeError, match="complex"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3, dtype=torch.complex64))


@every_inner
def test_goes_on_to_the_bit_from_a_checkpoint(make):
    mine = parameters(NAMES)
    ours = Magma(make(list(mine.values())), keep=0.5, seed=3)
    run(ours, mine, range(1, 6))
    other = {name: nn.Parameter(param.detach().clone()) for name, param in mine.items()}
    theirs = Magma(make(list(other.values())))
    theirs.load_state_dict(through_disk(ours.state_dict()))
    run(ours, mine, range(6, 20))
    run(theirs, other, range(6, 20))
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_by_name_and_copied(way):
    params = parameters(NAMES)
    model = nn.Module()
    for name, param in params.items():
        model.register_parameter(name, param)
    optimizer = hfoptim.create_optimizer_v2(model, "magma_adamw", lr=1e-2, magma_keep=0.7)
    assert isinstance(optimizer, Magma)
    run(optimizer, params)
    other, twins = way((optimizer, params))
    run(optimizer, params)
    run(other, twins)
    assert_same(values(params), values(twins))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": 1.5}, "magma_keep=1.5"),
        ({"tau": 0.0}, "magma_tau=0"),
        ({"alignment": -0.1}, "magma_decay=-0.1"),
        ({"momentum": 2.0}, "magma_beta=2.0"),
        ({"seed": -1}, "magma_seed=-1"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        Magma(torch.optim.SGD(parameters(NAMES).values(), lr=0.1), **options)
