"""The two modes of schedule-free AdamW: the author's averages, and a way back that is exact to the bit."""

from __future__ import annotations

import copy

import peers
import pytest
import torch
from harness import assert_follows, assert_goes_on_like, assert_same, feed, parameters, through_disk, train, values

import hfoptim
from hfoptim.training.gradient_release import prepare_for_gradient_release

LAYOUTS = ("scalar", "vector", "matrix", "conv", "transposed", "channels_last", "gaps")
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 5}


def peer(name, params, **options):
    try:
        optimizer = peers.load(name)(params, **options)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))
    optimizer.train()
    return optimizer


def ours(params, **options):
    return hfoptim.AdamWScheduleFree(list(params.items()), **{**OPTIONS, **options})


def row(params):
    return torch.cat([param.detach().flatten() for param in params.values()])


@pytest.mark.parametrize("who", ["AdamWScheduleFree", "AdamWScheduleFreeReference"])
@pytest.mark.parametrize(
    "options", [{}, {"betas": (0.5, 0.99)}, {"betas": (0.98, 0.9), "r": 2.0, "weight_lr_power": 0.0}], ids=str
)
def test_the_averages_are_the_authors(who, options):
    mine, other = parameters(LAYOUTS, torch.float64), parameters(LAYOUTS, torch.float64)
    start = values(mine)
    optimizer = ours(mine, **options)
    theirs = peer(f"schedulefree.{who}", list(other.values()), **{**OPTIONS, **options})
    trained, averaged = ([], []), ([], [])
    for t in range(1, 31):
        feed(mine, t, follow=other)
        feed(other, t)
        for each, params, *rows in (
            (optimizer, mine, trained[0], averaged[0]),
            (theirs, other, trained[1], averaged[1]),
        ):
            each.step()
            rows[0].append(row(params))
            each.eval()
            rows[1].append(row(params))
            each.train()
    assert_follows(*trained, start, 1e-10)
    assert_follows(*averaged, start, 1e-10)
    assert (trained[0][-1] - averaged[0][-1]).abs().max() > 1e-4
    for name in ("k", "weight_sum", "lr_max", "scheduled_lr"):
        assert optimizer.param_groups[0][name] == pytest.approx(theirs.param_groups[0][name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_a_hundred_switches_leave_no_trace(dtype):
    params = parameters(LAYOUTS, dtype)
    optimizer = ours(params)
    train(optimizer, params, range(1, 6))
    trained, state = values(params), copy.deepcopy([dict(optimizer.state[p]) for p in params.values()])
    optimizer.eval()
    averaged = values(params)
    assert all(not torch.equal(averaged[name], trained[name]) for name in ("matrix", "conv"))
    for _ in range(100):
        optimizer.train()
        assert_same(values(params), trained)
        assert_same([dict(optimizer.state[p]) for p in params.values()], state)
        optimizer.eval()
        assert_same(values(params), averaged)


def test_evaluating_between_the_steps_changes_nothing():
    # Also twice in a row, as Trainers do.
    for dtype in (torch.float32, torch.bfloat16):
        mine, other = parameters(LAYOUTS, dtype), parameters(LAYOUTS, dtype)
        plain, switching = ours(mine), ours(other)
        switching.eval()
        switching.train()
        for t in range(1, 6):
            feed(mine, t)
            feed(other, t, follow=mine)
            plain.step()
            switching.train()
            switching.train()
            switching.step()
            switching.eval()
            switching.eval()
        switching.train()
        assert_same(values(other), values(mine))
        assert_same(switching.state_dict(), plain.state_dict())


def test_it_begins_in_training_mode_and_steps_in_no_other():
    params = parameters(("matrix",))
    optimizer = ours(params)
    train(optimizer, params, range(1, 2))
    optimizer.eval()
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    called = []
    feed(params, 2)
    for closure in (None, lambda: called.append(1)):
        with pytest.raises(RuntimeError, match=r"evaluation mode.*optimizer\.train\(\)"):
            optimizer.step(closure)
    assert not called
    assert_same(values(params), before)
    assert_same(optimizer.state_dict(), state)
    optimizer.train()
    optimizer.step()


def test_gradient_release_steps_in_no_other_mode_either():
    model = torch.nn.Linear(3, 2)
    optimizer = hfoptim.AdamWScheduleFree(model.parameters(), **OPTIONS)
    prepare_for_gradient_release(model, optimizer)
    for _ in range(2):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    assert optimizer.param_groups[0]["k"] == 2
    optimizer.eval()
    before = values(dict(model.named_parameters()))
    with pytest.raises(RuntimeError, match="evaluation mode"):
        model(torch.ones(1, 3)).sum().backward()
    assert_same(values(dict(model.named_parameters())), before)
    assert optimizer.param_groups[0]["k"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_checkpoint_of_either_mode_goes_on_bit_for_bit(mode, dtype):
    whole, resumed = parameters(LAYOUTS, dtype), parameters(LAYOUTS, dtype, seed=1)
    optimizer = ours(whole)
    # One parameter has no state yet, and joins after the checkpoint.
    train(optimizer, whole, range(1, 5), only=[name for name in whole if name != "vector"])
    getattr(optimizer, mode)()
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    again = ours(resumed)
    again.load_state_dict(saved)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    assert_same(again.state_dict(), saved)
    for each, params in ((optimizer, whole), (again, resumed)):
        each.train()
        train(each, params, range(5, 9))
        each.eval()
    assert_same(values(resumed), values(whole))
    assert_same(again.state_dict(), optimizer.state_dict())


def test_copies_and_pickles_keep_the_way_back():
    params = parameters(("matrix", "vector"))
    optimizer = ours(params)
    train(optimizer, params, range(1, 4))
    trained = values(params)
    optimizer.eval()
    other, twin = copy.deepcopy((params, optimizer))
    twin.train()
    assert_same(values(other), trained)
    assert optimizer.param_groups[0]["train_mode"] is False


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_checkpoint_of_the_author_loads_in_either_mode(mode):
    mine, other = parameters(LAYOUTS, torch.float64), parameters(LAYOUTS, torch.float64)
    theirs = peer("schedulefree.AdamWScheduleFree", list(other.values()), **OPTIONS)
    train(theirs, other, range(1, 6))
    getattr(theirs, mode)()
    optimizer = hfoptim.AdamWScheduleFree(list(mine.values()))
    optimizer.load_state_dict(through_disk(theirs.state_dict()))
    assert {int(optimizer.state[p]["step"]) for p in mine.values()} == {5}
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    optimizer.train()
    theirs.train()
    assert_goes_on_like(optimizer, mine, theirs, other, range(6, 16), 1e-10)


def test_a_state_dict_whose_way_back_has_another_shape_is_refused():
    params = parameters(("matrix",))
    optimizer = ours(params)
    train(optimizer, params, range(1, 2))
    optimizer.eval()
    saved = through_disk(optimizer.state_dict())
    saved["state"][0]["y"] = torch.zeros(3)
    before = values(params)
    with pytest.raises(ValueError, match=r"y has the shape \(3,\)"):
        optimizer.load_state_dict(saved)
    assert_same(values(params), before)


def test_accelerate_passes_the_modes_on():
    accelerate = pytest.importorskip("accelerate")
    params = parameters(("matrix", "vector"))
    optimizer = ours(params)
    wrapped = accelerate.Accelerator(cpu=True).prepare(optimizer)
    assert optimizer.param_groups[0]["train_mode"] is True
    train(wrapped, params, range(1, 4))
    trained = values(params)
    wrapped.eval()
    assert optimizer.param_groups[0]["train_mode"] is False
    assert not torch.equal(params["matrix"], trained["matrix"])
    wrapped.train()
    assert_same(values(params), trained)


def test_the_average_needs_a_share_in_the_training_point():
    # y = z for beta1 = 0: nothing would hold x.
    params = list(parameters(("matrix",)).values())
    with pytest.raises(ValueError, match=r"betas=\(0\.0, 0\.999\).*betas\[0\] above 0"):
        hfoptim.AdamWScheduleFree(params, betas=(0.0, 0.999))
    with pytest.raises(ValueError, match=r"warmup_steps=2\.5 is not a whole number"):
        hfoptim.AdamWScheduleFree(params, warmup_steps=2.5)


def test_a_rate_of_zero_from_the_start_averages_nothing():
    params = parameters(("matrix",))
    start = values(params)
    optimizer = ours(params, lr=0.0)
    train(optimizer, params, range(1, 3))
    assert optimizer.param_groups[0]["weight_sum"] == 0.0
    optimizer.eval()
    assert_same(values(params), start)
    optimizer.train()
    train(optimizer, params, range(3, 5), lr=1e-2)
    assert all(torch.isfinite(p).all() and not torch.equal(p, start[name]) for name, p in params.items())
