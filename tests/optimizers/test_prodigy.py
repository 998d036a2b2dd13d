"""Prodigy's estimate: the author's at every step, shared by all groups, found without waiting for the device."""

from __future__ import annotations

import copy
import threading
import warnings

import peers
import pytest
import torch
from harness import assert_follows, assert_same, feed, flattened, parameters, set_lr, through_disk, train, values

import hfoptim
from hfoptim.engine import run_state

LAYOUTS = ("scalar", "vector", "matrix", "conv", "transposed")
# Where d grows from within a few steps of the tests' gradients.
START = {"lr": 1.0, "d0": 1e-2}
ESTIMATE = ("d", "d_max", "d_hat", "d_numerator", "d_denom")


def peer(groups, **options):
    try:
        return peers.load("prodigyopt.Prodigy")(groups, **options)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))


def estimate(optimizer):
    return [[group[name] for name in ESTIMATE] for group in optimizer.param_groups]


def assert_estimates_agree(ours, theirs, tolerance=1e-9):
    for mine, other in zip(estimate(ours), estimate(theirs), strict=True):
        torch.testing.assert_close(
            torch.tensor(mine, dtype=torch.float64),
            torch.tensor(other, dtype=torch.float64),
            rtol=tolerance,
            atol=0.0,
        )
    # That of the first group is what counts; the author counts a group's steps from when it joined.
    assert {group["k"] for group in ours.param_groups} == {theirs.param_groups[0]["k"]}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decouple": False, "safeguard_warmup": True},
        {"d_coef": 5.0, "growth_rate": 1.1, "slice_p": 3},
        {"betas": (0.0, 0.9), "beta3": 0.5},
        {"lr": 0.3, "use_bias_correction": True, "d_coef": 10.0},
    ],
    ids=str,
)
def test_the_estimate_is_the_authors_at_every_step(options):
    mine, other = parameters(LAYOUTS, torch.float64), parameters(LAYOUTS, torch.float64)
    options = {**START, **options}
    ours, theirs = hfoptim.Prodigy(list(mine.items()), **options), peer(list(other.values()), **options)
    for t in range(1, 41):
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        assert_estimates_agree(ours, theirs)
    assert ours.param_groups[0]["d"] > 1.2 * options["d0"]


def test_groups_share_the_estimate_and_zero_freezes_one():
    # Decay and eps are a group's own. The frozen group has a gradient; a fourth one joins later; lr warms up from 0.
    names = ("scalar", "vector", "matrix", "conv")
    mine, other = parameters(names, torch.float64), parameters(names, torch.float64)

    def groups(params):
        return [
            {"params": [params["matrix"]], "weight_decay": 0.2},
            {"params": [params["vector"]], "weight_decay": 0.0, "eps": 1e-3},
            {"params": [params["scalar"]], "lr": 0.0},
        ]

    ours = hfoptim.Prodigy(groups(mine), use_bias_correction=True, d_coef=10.0, **START)
    theirs = peer(groups(other), use_bias_correction=True, d_coef=10.0, **START)
    start = values(mine)
    rows = ([], [])
    for t in range(1, 41):
        if t == 15:
            for optimizer, params in ((ours, mine), (theirs, other)):
                optimizer.add_param_group({"params": [params["conv"]], "weight_decay": 0.1})
            assert len({group["d"] for group in ours.param_groups}) == 1
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = 0.0 if group["params"][0].ndim == 0 else min(1.0, (t - 1) / 5)
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        if t == 1:
            assert_same(values(mine), start)
            assert not any(ours.state.values())
        else:
            assert_estimates_agree(ours, theirs)
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    assert_follows(*rows, start, 1e-10)
    assert_same(mine["scalar"].detach(), start["scalar"])
    assert ours.param_groups[0]["d"] > 2 * START["d0"]


def test_a_group_that_is_frozen_later_stays_where_it_is():
    # The author's code would decay it, and go on with its momentum.
    params = parameters(("matrix", "vector"))
    optimizer = hfoptim.Prodigy(
        [{"params": [params["matrix"]]}, {"params": [params["vector"]]}], weight_decay=0.1, **START
    )
    train(optimizer, params, range(1, 4))
    optimizer.param_groups[1]["lr"] = 0.0
    before, state = params["vector"].detach().clone(), copy.deepcopy(dict(optimizer.state[params["vector"]]))
    train(optimizer, params, range(4, 6))
    assert_same(params["vector"].detach(), before)
    assert_same(dict(optimizer.state[params["vector"]]), state)


def test_groups_must_agree():
    params = parameters(("matrix", "vector"))
    optimizer = hfoptim.Prodigy([{"params": [params["matrix"]]}, {"params": [params["vector"]], "lr": 0.5}])
    start = values(params)
    feed(params, 1)
    with pytest.raises(ValueError, match=r"learning rates 0\.5, 1: Prodigy makes one estimate"):
        optimizer.step()
    assert_same(values(params), start)
    for name, value in (("d0", 1e-3), ("betas", (0.8, 0.999)), ("growth_rate", 2.0), ("use_bias_correction", True)):
        with pytest.raises(ValueError, match=f"{name}=.* in one group"):
            hfoptim.Prodigy([{"params": [params["matrix"]]}, {"params": [params["vector"]], name: value}])


def test_gradients_of_zero_move_nothing():
    params = parameters(("matrix", "vector"))
    start = values(params)
    optimizer = hfoptim.Prodigy(list(params.values()), weight_decay=0.1, **START)
    for _ in range(2):
        for param in params.values():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_same(values(params), start)
    assert estimate(optimizer) == [[1e-2, 1e-2, 1e-2, 0.0, 0.0]]
    train(optimizer, params, range(1, 3))
    assert all(torch.isfinite(param).all() for param in params.values())


def test_a_learning_rate_meant_for_another_optimizer_draws_a_warning():
    params = list(parameters(("matrix",)).values())
    with pytest.warns(UserWarning, match="learning rate of 5e-05 multiplies the step size that") as caught:
        hfoptim.Prodigy(params, lr=5e-5)  # TrainingArguments' default
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"learning rate of 0\.001"):
        hfoptim.Prodigy([{"params": params, "lr": 1e-3}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hfoptim.Prodigy(params)
        hfoptim.Prodigy(params, lr=0.1)
        hfoptim.Prodigy(params, lr=0.0)  # the start of a warm-up


# -- on a device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"slice_p": 3, "weight_decay": 0.1}, {"fsdp_in_use": True}], ids=str)
def test_a_step_reads_nothing_back_from_the_device(options, monkeypatch):
    # A tensor on "meta" has no value to read: that would raise.
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group=None: None)
    params = {name: torch.nn.Parameter(p.detach().to("meta")) for name, p in parameters(("matrix", "vector")).items()}
    for foreach in (False, True):
        optimizer = hfoptim.Prodigy(list(params.values()), foreach=foreach, **options)
        for _ in range(3):
            for param in params.values():
                param.grad = torch.empty_like(param)
            optimizer.step()
        for numbers in estimate(optimizer):
            assert all(number.device.type == "meta" and number.shape == () for number in numbers)
        assert optimizer.param_groups[0]["k"] == 3


@pytest.mark.parametrize("options", [{}, {"slice_p": 3, "betas": (0.0, 0.9)}], ids=str)
def test_tensors_on_a_device_and_numbers_on_the_host_give_the_same(options, monkeypatch):
    mine, other = parameters(LAYOUTS), parameters(LAYOUTS)
    start = values(mine)
    host = hfoptim.Prodigy(list(mine.items()), weight_decay=0.1, **START, **options)
    device = hfoptim.Prodigy(list(other.items()), weight_decay=0.1, **START, **options)
    rows = ([], [])
    for t in range(1, 21):
        set_lr(host, t, 1.0)
        set_lr(device, t, 1.0)
        feed(mine, t)
        feed(other, t, follow=mine)
        host.step()
        with monkeypatch.context() as patch:
            patch.setattr(run_state, "HOST", ())
            device.step()
        rows[0].append(flattened(other))
        rows[1].append(flattened(mine))
    assert_follows(*rows, start, 1e-5)
    assert all(isinstance(number, float) for number in estimate(host)[0])
    assert all(isinstance(number, torch.Tensor) and number.dtype is torch.float64 for number in estimate(device)[0])
    # A checkpoint goes from one to the other.
    resumed = hfoptim.Prodigy(list(mine.items()), **START, **options)
    resumed.load_state_dict(through_disk(device.state_dict()))
    feed(mine, 21)
    resumed.step()
    assert all(isinstance(number, float) for number in estimate(resumed)[0])


# -- sharded by hand -------------------------------------------------------------------------------------------------


def test_sums_are_taken_over_all_ranks_of_sharded_parameters(monkeypatch):
    # Two ranks in two threads; the second one lacks a gradient at times, and must not keep the first one waiting.
    whole = parameters(("matrix", "vector"), torch.float64)
    reference = hfoptim.Prodigy(list(whole.values()), **START)
    barrier, sums = threading.Barrier(2, timeout=60), {}

    def all_reduce(tensor, group=None):
        sums[threading.get_ident()] = tensor.clone()
        barrier.wait()
        tensor.copy_(sum(sums.values()))
        barrier.wait()

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shards = [parameters((name,), torch.float64) for name in ("matrix", "vector")]
    ranks = [hfoptim.Prodigy(list(shards[0].values()), fsdp_in_use=True, **START)]
    shards[1]["vector"]._fsdp_flattened = True  # what FullyShardedDataParallel writes
    ranks.append(hfoptim.Prodigy(list(shards[1].values()), **START))
    for t in range(1, 11):
        names = ("matrix",) if t % 3 == 0 else ("matrix", "vector")
        feed(whole, t, only=names)
        reference.step()
        for shard in shards:
            feed(shard, t, only=names)
        sums.clear()  # of the last step's threads, whose numbers these ones may have or not
        threads = [threading.Thread(target=rank.step) for rank in ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for rank in ranks:
            assert_estimates_agree(rank, reference, 1e-12)
    for shard in shards:
        for name, param in shard.items():
            torch.testing.assert_close(param, whole[name], rtol=1e-12, atol=0.0)
    assert reference.param_groups[0]["d"] > START["d0"]


# -- state -----------------------------------------------------------------------------------------------------------


def test_slices_make_the_state_smaller():
    params = parameters(("scalar", "vector", "matrix", "transposed"))
    optimizer = hfoptim.Prodigy(list(params.items()), slice_p=4, **START)
    start = values(params)
    train(optimizer, params, range(1, 3))
    for name, param in params.items():
        state = optimizer.state[param]
        assert_same(state["p0"], start[name].flatten()[::4])
        assert state["s"].shape == state["p0"].shape
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == param.shape


def test_a_start_of_zeros_loads_from_the_author():
    # prodigyopt keeps such a p0 as one number.
    mine, other = ({"matrix": torch.nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))} for _ in range(2))
    theirs = peer(list(other.values()), **START)
    train(theirs, other, range(1, 4))
    assert theirs.state[other["matrix"]]["p0"].shape == ()
    ours = hfoptim.Prodigy(list(mine.values()), **START)
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert_same(ours.state[mine["matrix"]]["p0"], torch.zeros(5, 3, dtype=torch.float64))
    with torch.no_grad():
        mine["matrix"].copy_(other["matrix"])
    for t in range(4, 8):
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        assert_estimates_agree(ours, theirs)
    torch.testing.assert_close(mine["matrix"], other["matrix"], rtol=1e-10, atol=0.0)
