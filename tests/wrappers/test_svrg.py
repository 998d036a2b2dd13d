"""SVRG: the authors' formula, its snapshots, and what it shares with SAM's contract."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from harness import assert_follows, assert_moved, assert_same, flattened, parameters, through_disk, values
from test_sam import loss_of
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import hfoptim
from hfoptim import SAM, SVRG

NAMES = ("scalar", "vector", "matrix", "conv")
BATCHES = (0, 1, 2)
INNER = {
    "torch.SGD": lambda params: torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=0.1),
    "hfoptim.AdamW": lambda params: hfoptim.AdamW(params, lr=1e-2, weight_decay=0.1),
}


def closure_of(optimizer, params, t):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(params, t)
        loss.backward()
        return loss

    return closure


def whole(params):
    return lambda: [(loss_of(params, t) / len(BATCHES)).backward() for t in BATCHES]


def run(optimizer, params, steps):
    for t in steps:
        if t % len(BATCHES) == 0:
            optimizer.snapshot(whole(params))
        optimizer.step(closure_of(optimizer, params, t))


def gradient(flat, params, t):
    at = flat.clone().requires_grad_()
    parts = at.split([param.numel() for param in params.values()])
    named = {name: part.reshape(params[name].shape) for part, name in zip(parts, params, strict=True)}
    return torch.autograd.grad(loss_of(named, t), at)[0]


@pytest.mark.parametrize("schedule", ["constant", "linear"])
@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_follows_the_authors(inner, schedule):
    """One vector of all parameters, and the coefficient of each epoch from numpy's linspace, as their code has it."""
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    epochs, start, rows = 4, values(mine), ([], [])
    coefficients = np.linspace(0.75, 0.0, epochs) if schedule == "linear" else np.full(epochs, 0.75)
    ours = SVRG(inner(list(mine.values())), snapshots=epochs if schedule == "linear" else 0)
    theirs = inner(list(other.values()))
    for t in range(epochs * len(BATCHES)):
        flat = flattened(other)
        if t % len(BATCHES) == 0:
            snapshot = flat.clone()
            full = torch.stack([gradient(snapshot, other, each) for each in BATCHES]).mean(0)
        step = gradient(flat, other, t) + (full - gradient(snapshot, other, t)) * coefficients[t // len(BATCHES)]
        for param, part in zip(other.values(), step.split([p.numel() for p in other.values()]), strict=True):
            param.grad = part.reshape(param.shape)
        theirs.step()
        run(ours, mine, [t])
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    assert_follows(*rows, start, 1e-10)
    assert_moved(mine, start)


@pytest.mark.parametrize("reached", [NAMES, ("vector", "matrix")], ids=["all", "some"])
def test_the_mean_over_all_batches_is_the_gradient(reached):
    """Whatever the coefficient, also for parameters that not every batch reaches."""
    params = parameters(NAMES, torch.float64)
    flat = flattened(params)

    def loss(t):
        return loss_of({name: params[name] for name in (reached if t == 0 else NAMES)}, t)

    optimizer = SVRG(torch.optim.SGD(list(params.values()), lr=0.0), 0.6)
    optimizer.snapshot(lambda: [(loss(t) / len(BATCHES)).backward() for t in BATCHES])
    with torch.no_grad():
        for param in params.values():
            param.mul_(1.1)
    found = []
    for t in BATCHES:

        def closure(t=t):
            optimizer.zero_grad()
            loss(t).backward()
            return loss(t)

        optimizer.step(closure)
        found.append(torch.cat([param.grad.flatten() for param in params.values()]))
    optimizer.zero_grad()
    for t in BATCHES:
        (loss(t) / len(BATCHES)).backward()
    plain = torch.cat([param.grad.flatten() for param in params.values()])
    torch.testing.assert_close(torch.stack(found).mean(0), plain, rtol=1e-10, atol=1e-10)
    assert (found[0] - found[1]).abs().max() > 1e-3
    torch.testing.assert_close(flattened(params), 1.1 * flat)


def test_at_the_snapshot_all_batches_have_one_gradient():
    params, found = parameters(NAMES, torch.float64), []
    optimizer = SVRG(torch.optim.SGD(list(params.values()), lr=0.0), 1.0)
    optimizer.snapshot(whole(params))
    for t in BATCHES:
        optimizer.step(closure_of(optimizer, params, t))
        found.append(torch.cat([param.grad.flatten() for param in params.values()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[0], found[2], rtol=1e-10, atol=1e-10)


def test_a_second_gradient_only_where_the_coefficient_is_not_0():
    params, calls = parameters(NAMES), []
    optimizer = SVRG(hfoptim.AdamW(list(params.values()), lr=1e-2), snapshots=2)
    losses = []
    for t in range(9):
        if t % 3 == 0:
            optimizer.snapshot(whole(params))
        closure = closure_of(optimizer, params, t)
        expected = loss_of(params, t)
        losses.append(optimizer.step(lambda t=t, closure=closure: (calls.append(t), closure())[1]) == expected)
    assert all(losses)
    assert calls == [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8]  # the coefficients 0.75, 0, 0


def test_by_hand_is_as_by_a_closure():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (SVRG(hfoptim.AdamW(list(p.values()), lr=1e-2)) for p in (mine, other))
    for optimizer, params in ((ours, mine), (theirs, other)):
        optimizer.snapshot(whole(params))
    for t in range(3):
        run(ours, mine, [t + 1])
        loss_of(other, t + 1).backward()
        theirs.first_step(zero_grad=True)
        with pytest.raises(RuntimeError, match="between first_step and second_step"):
            theirs.snapshot(whole(other))
        loss_of(other, t + 1).backward()
        theirs.second_step(zero_grad=True)
        if t == 1:
            for optimizer, params in ((ours, mine), (theirs, other)):
                optimizer.snapshot(whole(params))
    assert_same(values(mine), values(other))


@pytest.mark.parametrize("how", ["state_dict", "pickle", "deepcopy"])
def test_resumed_from_the_middle_of_an_epoch_bit_for_bit(how):
    def made(params):
        return hfoptim.create_optimizer_v2(list(params.items()), "svrg_adamw", lr=1e-2, svrg_snapshots=5)

    mine = parameters(NAMES)
    ours = made(mine)
    assert isinstance(ours, SVRG)
    assert hfoptim.get_optimizer_info("svrg_adamw").needs_closure
    run(ours, mine, range(5))
    if how == "state_dict":
        other = parameters(NAMES)
        theirs = made(other)
        with torch.no_grad():
            for key, value in other.items():
                value.copy_(mine[key])
        theirs.load_state_dict(through_disk(ours.state_dict()))
    else:
        both = (ours, mine)
        theirs, other = pickle.loads(pickle.dumps(both)) if how == "pickle" else copy.deepcopy(both)
    run(ours, mine, range(5, 11))
    run(theirs, other, range(5, 11))
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_a_checkpoint_without_its_tensors_is_refused_and_that_of_the_inner_one_begins_anew():
    params = parameters(NAMES)
    optimizer = SVRG(hfoptim.AdamW(list(params.values()), lr=1e-2))
    run(optimizer, params, [0])
    lost = optimizer.state_dict()
    for entry in lost["state"].values():
        del entry["svrg_snapshot"]
    with pytest.raises(ValueError, match="flatten_optimizer_state_dict=False"):
        optimizer.load_state_dict(lost)
    alone = hfoptim.AdamW(list(params.values()))
    loss_of(params).backward()
    alone.step()
    other = SVRG(hfoptim.AdamW(list(params.values())))
    other.load_state_dict(alone.state_dict())
    with pytest.raises(RuntimeError, match=r"call snapshot\(closure\)"):
        run(other, params, [1])


def test_the_step_that_makes_state_for_a_checkpoint_leaves_the_snapshot():
    model = torch.nn.Linear(3, 2)
    optimizer = SVRG(torch.optim.AdamW(model.parameters(), lr=1e-2))
    start = values(dict(model.named_parameters()))
    optimizer.snapshot(lambda: model(torch.ones(4, 3)).square().mean().backward())
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert_same({name: state[name]["svrg_snapshot"] for name in start}, start)
    assert state["weight"]["svrg_full_grad"].abs().max() > 0


def test_a_closure_that_fails_leaves_nothing_behind():
    params = parameters(NAMES)
    optimizer = SVRG(hfoptim.AdamW(list(params.values()), lr=1e-2))
    run(optimizer, params, [0])
    before = values(params)

    def closure():
        raise KeyboardInterrupt

    loss_of(params).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_same(values(params), before)
    assert not any(optimizer.kept[each] for each in optimizer.between)


def test_groups_have_coefficients_of_their_own_and_new_ones_none_before_a_snapshot():
    params = parameters(NAMES)
    own = list(params.values())
    groups = [{"params": own[:1], "svrg_coefficient": 0.0}, {"params": own[1:2]}]
    optimizer = SVRG(torch.optim.SGD(groups, lr=1e-3), 1.0)
    run(optimizer, {name: params[name] for name in NAMES[:2]}, [0])
    optimizer.add_param_group({"params": own[2:]})
    assert [optimizer.alpha(group) for group in optimizer.param_groups] == [0.0, 1.0, 0.0]
    run(optimizer, params, [1])
    plain = torch.autograd.grad(loss_of(params, 2), own)
    optimizer.step(closure_of(optimizer, params, 2))
    for param, grad, corrected in zip(own, plain, (False, True, False, False), strict=True):
        assert torch.equal(param.grad, grad) is not corrected
    run(optimizer, params, [3])
    assert [optimizer.alpha(group) for group in optimizer.param_groups] == [0.0, 1.0, 1.0]


def test_the_inner_optimizer_is_told_the_loss_at_the_weights():
    params, told = parameters(NAMES), []
    inner = hfoptim.AliG(list(params.values()))
    add_loss = inner.add_loss
    inner.add_loss = lambda loss: (told.append(float(loss)), add_loss(loss))[1]
    optimizer = SVRG(inner)
    optimizer.snapshot(whole(params))
    for t in (1, 2):
        expected = float(loss_of(params, t).detach())
        run(optimizer, params, [t])
        assert told[-1] == expected


def test_mistakes():
    params = list(parameters(NAMES).values())
    sgd = torch.optim.SGD(params, lr=0.1)
    for options, words in (
        ({"coefficient": -1.0}, "svrg_coefficient=-1"),
        ({"snapshots": 1.5}, "svrg_snapshots=1.5"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            SVRG(sgd, **options)
    for inner, words in (
        (SAM(None, sgd), "SVRG cannot go around another SAM"),
        (torch.optim.LBFGS(params), "LBFGS computes gradients at points of its own"),
        (hfoptim.Adahessian(params), "needs the graph"),
    ):
        with pytest.raises(ValueError, match=words):
            SVRG(inner)
    optimizer = SVRG(sgd)
    with pytest.raises(ValueError, match="SVRG takes two gradients per step"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"no snapshot; call snapshot\(closure\)"):
        optimizer.step(lambda: torch.ones(()))
    with pytest.raises(RuntimeError, match="calls backward for each batch"):
        optimizer.snapshot(lambda: None)
