"""What SPlus has beside its steps: weights of its own to evaluate with."""

from __future__ import annotations

import peers
import pytest
import torch
from cases.splus import InFloat64
from harness import assert_same, parameters, through_disk, train, values

import hfoptim

_NAMES = ("q_proj.weight", "vector", "conv")
_OPTIONS = {"lr": 1e-2, "inverse_steps": 2, "ema_rate": 0.9}


def _trained(steps):
    params = parameters(_NAMES, torch.float64)
    optimizer = hfoptim.SPlus(list(params.items()), **_OPTIONS)
    train(optimizer, params, range(1, steps + 1))
    return optimizer, params


def test_the_weights_for_evaluation_are_the_peers():
    if not peers.installed("pytorch_optimizer"):
        pytest.skip("needs pytorch_optimizer")
    optimizer, params = _trained(7)
    other = parameters(_NAMES, torch.float64)
    peer = InFloat64("pytorch_optimizer.SPlus", other, dict(_OPTIONS))
    train(peer, other, range(1, 8))
    before = values(params)
    optimizer.eval()
    peer.optimizer.eval()
    for name in _NAMES:
        torch.testing.assert_close(params[name], other[name], rtol=1e-9, atol=1e-11)
        assert not torch.equal(params[name], before[name])
    optimizer.train()
    assert_same(values(params), before)


def test_a_parameter_without_a_step_keeps_its_weights():
    params = parameters(_NAMES, torch.float64)
    optimizer = hfoptim.SPlus(list(params.items()), **_OPTIONS)
    before = values(params)
    optimizer.eval()
    assert_same(values(params), before)


def test_saved_in_evaluation_mode_it_goes_on_alike():
    optimizer, params = _trained(3)
    optimizer.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        optimizer.step()
    again = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    resumed = hfoptim.SPlus(list(again.items()), **_OPTIONS)
    resumed.load_state_dict(through_disk(optimizer.state_dict()))
    for each, own in ((optimizer, params), (resumed, again)):
        each.train()
        train(each, own, range(4, 7))
    assert_same(values(again), values(params))
