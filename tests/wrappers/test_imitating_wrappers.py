"""Wrappers whose class derives from that of the optimizer inside, as those of Lightning and Fabric do.

Methods of the optimizer's class are then found on the wrapper, with the wrapper as `self`.
"""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, parameters, through_disk, train, values

import hfoptim
from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all

NAMES = ("vector", "matrix", "conv")


class Disguise:
    """What stands around an optimizer."""

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.__class__ = type("Disguised", (Disguise, type(optimizer)), {})

    @property
    def optimizer(self):
        return self._optimizer

    def __getattr__(self, name):
        return getattr(self._optimizer, name)


def made(cls, **options):
    params = parameters(NAMES)
    return cls(list(params.items()), **options), params


def test_the_optimizer_itself_is_found_inside():
    optimizer, _ = made(hfoptim.AdamW)
    around = Disguise(optimizer)
    assert isinstance(around, RuleOptimizer)
    assert unwrap(around) is optimizer
    assert unwrap(around, RuleOptimizer) is optimizer
    assert unwrap(around, torch.optim.LBFGS) is None
    assert unwrap_all(around, RuleOptimizer) == [optimizer]
    other, _ = made(hfoptim.Lion)
    assert unwrap_all(Disguise(hfoptim.CombinedOptimizer([optimizer, other])), RuleOptimizer) == [optimizer, other]


def lookahead(params):
    return hfoptim.Lookahead(hfoptim.AdamW(params), k=2)


def combined(params):
    return hfoptim.CombinedOptimizer([hfoptim.Lion(params[:1]), hfoptim.AdamW(params[1:])])


@pytest.mark.parametrize("cls", [hfoptim.AdamW, hfoptim.AdamWScheduleFree, lookahead, combined])
def test_a_state_dict_goes_into_the_optimizer_itself(cls):
    optimizer, params = made(cls)
    train(optimizer, params, range(1, 4))
    again, _ = made(cls)
    around = Disguise(again)
    around.load_state_dict(through_disk(optimizer.state_dict()))
    assert_same(again.state_dict(), optimizer.state_dict())
    assert_same(around.state_dict(), optimizer.state_dict())


def test_modes_are_switched_through_it():
    (ours, mine), (theirs, other) = made(hfoptim.AdamWScheduleFree), made(hfoptim.AdamWScheduleFree)
    for optimizer in (Disguise(ours), theirs):
        optimizer.train()
    train(ours, mine, range(1, 4))
    train(theirs, other, range(1, 4))
    Disguise(ours).eval()
    theirs.eval()
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_gradients_are_released_to_the_optimizer_itself():
    model, twin = (torch.nn.Linear(3, 2) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    ours, theirs = (hfoptim.AdamW(net.parameters(), lr=1e-2) for net in (model, twin))
    hfoptim.prepare_for_gradient_release(model, Disguise(ours))
    hfoptim.prepare_for_gradient_release(twin, theirs)
    for optimizer, net in ((ours, model), (theirs, twin)):
        for _ in range(3):
            net(torch.ones(2, 3)).square().mean().backward()
            optimizer.step()
    assert_same(dict(model.state_dict()), dict(twin.state_dict()))
    hfoptim.remove_gradient_release(model)


def test_both_steps_of_sam_work_through_it():
    (ours, mine), (theirs, other) = (made(hfoptim.SAM, base_optimizer="adamw", lr=1e-2) for _ in range(2))
    around = Disguise(ours)
    assert around.base_optimizer is ours.base_optimizer
    for optimizer, params in ((around, mine), (theirs, other)):
        for _ in range(3):
            sum((p**4).sum() for p in params.values()).backward()
            optimizer.first_step(zero_grad=True)
            sum((p**4).sum() for p in params.values()).backward()
            optimizer.second_step(zero_grad=True)
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_lookahead_is_synchronised_through_it():
    (ours, mine), (theirs, other) = (made(lambda p: hfoptim.Lookahead(hfoptim.AdamW(p), k=5)) for _ in range(2))
    for optimizer, params in ((ours, mine), (theirs, other)):
        train(optimizer, params, range(1, 4))
    Disguise(ours).sync_lookahead()
    theirs.sync_lookahead()
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())
