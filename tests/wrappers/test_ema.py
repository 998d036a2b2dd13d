"""EMA: its averages, its two modes, and that it is a torch optimizer wherever one is wanted."""

from __future__ import annotations

import copy
import pickle
import warnings

import peers
import pytest
import torch
from harness import assert_moved, assert_same, feed, flattened, parameters, through_disk, values
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import hfoptim
from hfoptim import EMA

NAMES = ("vector", "matrix", "conv")
STEPS = range(1, 13)


def holder(params):
    model = nn.Module()
    for name, param in params.items():
        model.register_parameter(name, param)
    return model


def averaged(params):
    return flattened(dict(params.named_parameters()))


def ema_of(params, **options):
    return EMA(hfoptim.AdamW(list(params.items()), lr=1e-2, weight_decay=0.1), **options)


def run(optimizer, params, steps=STEPS, after=lambda t: None):
    for t in steps:
        feed(params, t)
        optimizer.step()
        after(t)


def evaluated(optimizer, params):
    """What evaluation sees; afterwards all is as before."""
    before = values(params)
    optimizer.eval()
    found = flattened(params)
    optimizer.train()
    assert_same(values(params), before)
    return found


# -- numbers ---------------------------------------------------------------------------------------------------------


class _Dog:
    def __init__(self, model):
        self.inner = peers.load("dog.averager.PolynomialDecayAverager")(model, gamma=3.0)
        self.module = self.inner.averaged_model

    def update_parameters(self, model):
        self.inner.step()


PEERS = {
    "exponential": ({"decay": 0.7}, lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))),
    "uniform": ({"average": "uniform"}, AveragedModel),
    "polynomial": ({"average": "polynomial", "gamma": 3.0}, _Dog),
}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", PEERS)
def test_follows_a_peer(kind, every):
    params = parameters(NAMES, torch.float64)
    model, start = holder(params), values(params)
    options, make = PEERS[kind]
    theirs, ours = make(model), ema_of(params, every=every, start=2, **options)

    def compare(t):
        if t > 2 and (t - 3) % every == 0:
            theirs.update_parameters(model)
            torch.testing.assert_close(evaluated(ours, params), averaged(theirs.module), rtol=0, atol=1e-13)

    run(ours, params, after=compare)
    assert_moved(params, start)
    assert not torch.allclose(evaluated(ours, params), flattened(params), rtol=0, atol=1e-4)


def test_the_share_grows_in_a_warm_up():
    params = parameters(NAMES, torch.float64)
    optimizer = ema_of(params, decay=0.4, warmup=True)
    expected = None

    def compare(t):
        nonlocal expected
        share = min(0.4, (1 + t - 1) / (10 + t - 1))
        now = flattened(params)
        expected = now if expected is None else share * expected + (1 - share) * now
        torch.testing.assert_close(evaluated(optimizer, params), expected, rtol=0, atol=1e-13)

    run(optimizer, params, after=compare)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_average_of_few_bits_is_kept_in_float32(dtype):
    # A share of 1/1000 of a step is far below the spacing of bfloat16 numbers.
    params = parameters(NAMES, dtype)
    optimizer = EMA(torch.optim.SGD(params.values(), lr=0.1), decay=0.999)
    expected = None

    def compare(t):
        nonlocal expected
        now = flattened(params).float()
        expected = now if expected is None else 0.999 * expected + 0.001 * now
        kept = torch.cat([optimizer.kept["weight_average"][param].flatten() for param in params.values()])
        assert kept.dtype is torch.float32
        torch.testing.assert_close(kept, expected, rtol=0, atol=1e-5)

    run(optimizer, params, after=compare)
    assert all(param.dtype is dtype for param in params.values())
    assert (flattened(params).float() - expected).abs().max() > 0.01


# -- modes -----------------------------------------------------------------------------------------------------------


def test_training_does_not_notice_it():
    alone, beside = parameters(NAMES), parameters(NAMES)
    run(hfoptim.AdamW(list(alone.items()), lr=1e-2, weight_decay=0.1), alone)
    optimizer = ema_of(beside)
    run(optimizer, beside, after=lambda t: evaluated(optimizer, beside))
    assert_same(values(alone), values(beside))


def test_a_step_in_evaluation_mode_is_refused():
    params = parameters(NAMES)
    optimizer = ema_of(params)
    run(optimizer, params)
    optimizer.eval()
    optimizer.eval()
    before = values(params)
    feed(params, 1)
    with pytest.raises(RuntimeError, match=r"call optimizer.train\(\)"):
        optimizer.step()
    assert_same(values(params), before)
    optimizer.train()
    optimizer.step()


def test_before_there_is_an_average_the_weights_stay():
    params = parameters(NAMES)
    optimizer = ema_of(params, start=100)
    run(optimizer, params)
    assert torch.equal(evaluated(optimizer, params), flattened(params))


def test_parameters_without_gradients_frozen_ones_and_later_groups():
    params = parameters(("vector", "matrix", "conv", "row"))
    params["row"].requires_grad_(False)
    late = parameters(("column",))
    optimizer = EMA(torch.optim.SGD([{"params": [params[n] for n in ("vector", "matrix", "conv", "row")]}], lr=0.1))
    feed({name: params[name] for name in ("vector", "matrix")}, 1)
    optimizer.step()
    optimizer.add_param_group({"params": list(late.values()), "ema_decay": 0.5})
    feed(late, 2)
    optimizer.step()
    assert [group["ema_decay"] for group in optimizer.param_groups] == [0.999, 0.5]
    assert params["row"] not in optimizer.kept["weight_average"]
    assert params["conv"] in optimizer.kept["weight_average"]
    evaluated(optimizer, {**params, **late})


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluating", [False, True])
def test_goes_on_to_the_bit_from_a_checkpoint_of_either_mode(evaluating):
    mine = parameters(NAMES)
    ours = ema_of(mine, decay=0.8, every=2)
    run(ours, mine, range(1, 6))
    if evaluating:
        ours.eval()
    other = {name: nn.Parameter(param.detach().clone()) for name, param in mine.items()}
    theirs = ema_of(other)
    theirs.load_state_dict(through_disk(ours.state_dict()))
    for optimizer in (ours, theirs):
        optimizer.train()
    assert_same(values(mine), values(other))
    run(ours, mine, range(6, 12))
    run(theirs, other, range(6, 12))
    assert torch.equal(evaluated(ours, mine), evaluated(theirs, other))
    assert_same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("flat", [False, True])
def test_torchs_distributed_state_dict_takes_the_average_along_or_says_that_it_does_not(flat):
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    mine, other = parameters(NAMES), parameters(NAMES)
    model, again = holder(mine), holder(other)
    ours, theirs = (EMA(hfoptim.AdamW(list(params.items()), lr=1e-2), decay=0.5) for params in (mine, other))
    run(ours, mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own calls
        saved = through_disk(get_optimizer_state_dict(model, ours, options=options))
        if flat:  # torch goes by the inner state alone
            with pytest.raises(ValueError, match="flatten_optimizer_state_dict=False"):
                set_optimizer_state_dict(again, theirs, saved, options=options)
            return
        set_optimizer_state_dict(again, theirs, saved, options=options)
    theirs.eval()
    ours.eval()
    assert_same(values(other), values(mine))


@pytest.mark.parametrize("name", ["ema_adamw", "ema_lion"])
@pytest.mark.parametrize("way", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_are_whole(name, way):
    params = parameters(NAMES)
    optimizer = hfoptim.create_optimizer_v2(holder(params), name, lr=1e-2, ema_decay=0.5)
    run(optimizer, params)
    other, twins = way((optimizer, params))
    run(optimizer, params)
    run(other, twins)
    assert torch.equal(evaluated(optimizer, params), evaluated(other, twins))


def test_the_inner_checkpoint_loads_and_the_average_begins_anew():
    mine, other = parameters(NAMES), parameters(NAMES)
    inner = hfoptim.AdamW(list(mine.items()), lr=1e-2, weight_decay=0.1)
    run(inner, mine)
    optimizer = ema_of(other)
    run(optimizer, other)
    optimizer.load_state_dict(inner.state_dict())
    assert not optimizer.kept["weight_average"]
    assert [group["ema_step"] for group in optimizer.param_groups] == [0]


# -- names and errors ------------------------------------------------------------------------------------------------


def test_by_name():
    params = parameters(NAMES)
    optimizer = hfoptim.create_optimizer_v2(holder(params), "EMA-AdamW", lr=1e-2, ema_average="uniform")
    assert isinstance(optimizer, EMA)
    assert {group["ema_average"] for group in optimizer.param_groups} == {"uniform"}
    run(optimizer, params)
    assert hfoptim.get_optimizer_info("ema_muon").name == "ema_muon"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"decay": 1.0}, ValueError, "ema_decay=1.0"),
        ({"decay": "much"}, (TypeError, ValueError), "ema_decay='much'"),
        ({"average": "exponental"}, ValueError, "ema_average='exponental' is not known; .*exponential"),
        ({"every": 0}, ValueError, "ema_every=0"),
        ({"start": -1}, ValueError, "ema_start=-1"),
        ({"gamma": -1.0}, ValueError, "ema_gamma=-1.0"),
        ({"warmup": 3}, (TypeError, ValueError), "ema_warmup=3"),
    ],
)
def test_bad_options(options, error, match):
    with pytest.raises(error, match=match):
        ema_of(parameters(NAMES), **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: hfoptim.AdamWScheduleFree(params),
        lambda params: EMA(torch.optim.SGD(params, lr=0.1)),
        lambda params: hfoptim.Lookahead(hfoptim.SGDScheduleFree(params)),
    ],
)
def test_goes_around_nothing_that_has_an_average(make):
    with pytest.raises(ValueError, match=r"average|another EMA"):
        EMA(make(list(parameters(NAMES).values())))
