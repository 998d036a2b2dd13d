"""What only AdamWeightDecay has: name patterns, learning-rate functions, Keras' configuration."""

from __future__ import annotations

import pickle

import pytest
import torch
from harness import assert_same, feed, parameters, train, values
from torch import nn

import schedules
from hfoptim import AdamWeightDecay

NAMES = ("matrix", "vector", "conv")


def decayed(optimizer):
    """Names of the parameters that are decayed."""
    return {name for g in optimizer.param_groups if g["weight_decay"] for name in g["param_names"]}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, {"matrix", "vector", "conv"}),
        (None, ["v"], {"matrix"}),
        (None, ["^v"], {"matrix", "conv"}),
        (["conv"], ["."], {"conv"}),
        (["conv"], None, {"matrix", "vector", "conv"}),  # what is not excluded is decayed, as in transformers
        (None, ["mat.ix", "conv$"], {"vector"}),
        (None, ["VECTOR"], {"matrix", "vector", "conv"}),
        (None, ["(?i)VECTOR"], {"matrix", "conv"}),
        (None, ["."], set()),
    ],
)
def test_patterns_choose_what_is_decayed(include, exclude, expected):
    optimizer = AdamWeightDecay(
        list(parameters(NAMES).items()),
        weight_decay_rate=0.1,
        include_in_weight_decay=include,
        exclude_from_weight_decay=exclude,
    )
    assert decayed(optimizer) == expected
    assert {n for g in optimizer.param_groups for n in g["param_names"]} == set(NAMES)


def test_patterns_hold_for_groups_and_later_ones():
    params = parameters(NAMES)
    optimizer = AdamWeightDecay(
        [{"params": [(n, params[n]) for n in ("matrix", "vector")], "weight_decay": 0.3, "lr": 1e-2}],
        weight_decay_rate=0.1,
        exclude_from_weight_decay=["vector", "bias"],
    )
    optimizer.add_param_group({"params": [("conv", params["conv"]), ("bias", nn.Parameter(torch.ones(2)))]})
    got = {n: (g["weight_decay"], g["lr"]) for g in optimizer.param_groups for n in g["param_names"]}
    assert got == {"matrix": (0.3, 1e-2), "vector": (0.0, 1e-2), "conv": (0.1, 1e-3), "bias": (0.0, 1e-3)}


def test_a_module_brings_its_names():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    optimizer = AdamWeightDecay(model, weight_decay_rate=0.1, exclude_from_weight_decay=["bias", r"^1\."])
    assert decayed(optimizer) == {"0.weight"}


def test_a_learning_rate_function_is_asked_for_every_step():
    asked = []

    def rate(step):
        asked.append(step)
        return 1e-2 / (step + 1)

    params = parameters(NAMES)
    optimizer = AdamWeightDecay(list(params.items()), learning_rate=rate)
    asked.clear()
    applied = []
    for t in range(1, 5):
        train(optimizer, params, range(t, t + 1))
        applied.append(optimizer.param_groups[0]["lr"])
    assert asked == [0, 1, 2, 3]
    assert applied == [rate(step) for step in range(4)]


def test_all_groups_follow_one_count_of_steps():
    rate = schedules.PolynomialDecay(1e-2, 10, 0.0)
    params = parameters(NAMES)
    optimizer = AdamWeightDecay(
        list(params.items()), learning_rate=rate, weight_decay_rate=0.1, exclude_from_weight_decay=["conv"]
    )
    for t in range(1, 4):
        train(optimizer, params, range(t, t + 1), only=("matrix",))  # conv's group has no gradient
        assert [g["lr"] for g in optimizer.param_groups] == [rate(t - 1)] * 2


@pytest.mark.parametrize("clip", [{}, {"clipnorm": 0.5}, {"global_clipnorm": 2.0}], ids=str)
def test_the_configuration_makes_the_same_optimizer(clip):
    params, other = parameters(NAMES), parameters(NAMES)
    optimizer = AdamWeightDecay(
        list(params.items()),
        schedules.WarmUp(1e-2, schedules.PolynomialDecay(1e-2, 10), 3),
        0.8,
        0.95,
        1e-5,
        True,
        0.1,
        ["conv"],
        ["."],
        "mine",
        **clip,
    )
    config = optimizer.get_config()
    assert (config["name"], config["beta_1"], config["epsilon"], config["amsgrad"]) == ("mine", 0.8, 1e-5, True)
    twin = AdamWeightDecay.from_config(pickle.loads(pickle.dumps(config)), list(other.items()))
    assert twin.get_config() == config
    assert twin.name == optimizer.name == "mine"
    train(optimizer, params, range(1, 5))
    train(twin, other, range(1, 5))
    assert_same(values(params), values(other))


def test_pytorchs_names_replace_keras():
    params = list(parameters(NAMES).items())
    optimizer = AdamWeightDecay(params, lr=1e-4, betas=(0.7, 0.8), eps=1e-3, weight_decay=0.2)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-4, (0.7, 0.8), 1e-3, 0.2)


def test_global_clipping_sees_all_groups_and_dtypes():
    mine, other = parameters(("matrix", "vector")), parameters(("matrix", "vector"))
    optimizer = AdamWeightDecay(
        [{"params": [mine["matrix"]]}, {"params": [mine["vector"]], "lr": 1e-2}], global_clipnorm=0.1, epsilon=1e-2
    )
    plain = AdamWeightDecay([{"params": [other["matrix"]]}, {"params": [other["vector"]], "lr": 1e-2}], epsilon=1e-2)
    for t in range(1, 4):
        feed(mine, t, follow=other)
        feed(other, t)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(list(other.values()), 0.1)
        plain.step()
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], rtol=1e-5, atol=1e-6)
    mixed = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimizer = AdamWeightDecay(mixed, global_clipnorm=1.0)
    for param in mixed:
        param.grad = torch.full_like(param, 2.0)
    optimizer.step()
    clipped = 2.0 / 24**0.5
    for param in mixed:
        assert float(optimizer.state[param]["exp_avg"][0]) == pytest.approx(0.1 * clipped, rel=1e-5)


def test_amsgrad_may_be_switched_on_later():
    params = parameters(NAMES)
    optimizer = AdamWeightDecay(list(params.items()))
    train(optimizer, params, range(1, 3))
    optimizer.param_groups[0]["amsgrad"] = True
    train(optimizer, params, range(3, 5))
    for state in optimizer.state.values():
        assert (state["max_exp_avg_sq"] >= state["exp_avg_sq"]).all()
