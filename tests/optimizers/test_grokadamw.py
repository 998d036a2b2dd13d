"""GrokAdamW's signal: functions of the run, a number in checkpoints; and the places of parameters."""

from __future__ import annotations

import math

import pytest
import torch
from harness import assert_same, parameters, through_disk, train, values

import hfoptim

NAMES = ("matrix", "vector", "conv")


def build(params, **options):
    return hfoptim.GrokAdamW(list(params.items()), lr=1e-2, **options)


def test_functions_give_the_signal_and_their_mean_is_saved():
    signals = iter([1.0, 3.0])
    params = parameters(NAMES)
    optimizer = build(params, grokking_signal_fns=[lambda: next(signals), lambda: None, lambda: 2.0])
    assert optimizer.param_groups[0]["grokking_signal"] == 0.0
    seen = []
    for t in (1, 2):
        train(optimizer, params, [t])
        seen.append(optimizer.param_groups[0]["grokking_signal"])
    assert seen == [1.5, 2.5]
    saved = through_disk(optimizer.state_dict())
    assert saved["param_groups"][0]["grokking_signal"] == 2.5
    assert "grokking_signal_fns" not in saved["param_groups"][0]
    again = build(parameters(NAMES))
    again.load_state_dict(saved)
    assert again.param_groups[0]["grokking_signal"] == 2.5


def test_a_signal_lowers_the_decay_rate_of_the_slow_average():
    params = {"matrix": torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))}
    optimizer = build(params, gradient_clipping=0.0, alpha_init=0.9, grokking_signal_decay_rate=0.5)
    optimizer.param_groups[0]["grokking_signal"] = 2.0
    params["matrix"].grad = torch.full((2, 2), 3.0, dtype=torch.float64)
    optimizer.step()
    slow = optimizer.state[params["matrix"]]["grok_ema"]
    torch.testing.assert_close(slow, torch.full_like(slow, 3.0 * (1.0 - 0.9 * math.exp(-1.0))))


def test_functions_that_fail_and_what_are_no_functions_are_heard_of():
    params = parameters(NAMES)
    optimizer = build(params, grokking_signal_fns=[lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        train(optimizer, params, [1])
    with pytest.raises(TypeError, match=r"grokking_signal_fns=\[1\.0\], expected a list of functions"):
        build(params, grokking_signal_fns=[1.0])


def test_places_are_counted_in_each_group_and_stay_in_a_run_that_resumes():
    params = parameters(NAMES)
    optimizer = hfoptim.GrokAdamW([{"params": [params["matrix"], params["vector"]]}, {"params": [params["conv"]]}])
    train(optimizer, params, range(1, 3))
    places = {name: float(optimizer.state[param]["place"]) for name, param in params.items()}
    assert places == {"matrix": 0.0, "vector": 1.0, "conv": 0.0}
    twin = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    again = hfoptim.GrokAdamW([{"params": [twin["matrix"], twin["vector"]]}, {"params": [twin["conv"]]}])
    again.load_state_dict(through_disk(optimizer.state_dict()))
    train(again, twin, range(3, 5))
    train(optimizer, params, range(3, 5))
    assert_same(values(twin), values(params))
