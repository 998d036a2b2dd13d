"""Lookahead: its numbers, and that it is a torch optimizer wherever one is wanted."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import peers
import pytest
import torch
from harness import (
    SMALL,
    assert_follows,
    assert_moved,
    assert_same,
    feed,
    flattened,
    parameters,
    set_lr,
    through_disk,
    train,
    values,
)

import hfoptim
import schedules
from hfoptim import Lookahead, registry
from hfoptim.compare.runs import state_bytes_per_param
from hfoptim.engine import unwrap

NAMES = ("vector", "matrix", "conv")
# Inner optimizers of all kinds, and the learning rate to try them with.
INNER = {
    "torch.SGD": (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1), 1e-2),
    "torch.AdamW": (lambda p: torch.optim.AdamW(p, lr=1e-2), 1e-2),
    "torch.RMSprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3), 1e-3),
    "hfoptim.AdamW": (lambda p: hfoptim.AdamW(p, lr=1e-2, weight_decay=0.1), 1e-2),
    "hfoptim.Lion": (lambda p: hfoptim.Lion(p, lr=1e-3), 1e-3),
    "hfoptim.Adafactor": (lambda p: hfoptim.Adafactor(p), None),
}
every_inner = pytest.mark.parametrize(("make", "lr"), [pytest.param(*v, id=k) for k, v in INNER.items()])


def adamw(params, **options):
    return Lookahead(hfoptim.AdamW(list(params.items()), lr=1e-2), **options)


# -- numbers ---------------------------------------------------------------------------------------------------------


def run_beside(ours, mine, theirs, other, lr, steps=range(1, 33)):
    """Train both on the same gradients; where both are after every step, and the start."""
    start = values(mine)
    rows = ([], [])
    for t in steps:
        for optimizer in (ours, theirs):
            set_lr(optimizer, t, lr)
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        rows[0].append(flattened(mine))
        rows[1].append(flattened(other))
    return *rows, start


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (1, 0.8), (3, 0.3), (4, 0.99), (2, 0.0)])
@every_inner
def test_follows_pytorch_optimizer(make, lr, k, alpha):
    # The same as the author's code.
    mine, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    theirs = peers.load("pytorch_optimizer.Lookahead")(make(list(other.values())), k=k, alpha=alpha)
    rows = run_beside(Lookahead(make(list(mine.values())), k, alpha), mine, theirs, other, lr)
    assert_follows(*rows, 1e-10)
    if alpha:
        assert_moved(mine, rows[2])


@pytest.mark.parametrize("pullback", ["none", "reset", "pullback"])
def test_momentum_follows_pytorch_optimizer(pullback):
    mine, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    make = INNER["torch.SGD"][0]
    theirs = peers.load("pytorch_optimizer.Lookahead")(make(list(other.values())), k=3, pullback_momentum=pullback)
    ours = Lookahead(make(list(mine.values())), k=3, pullback_momentum=pullback)
    assert_follows(*run_beside(ours, mine, theirs, other, 1e-2), 1e-10)
    for name, param in mine.items():
        torch.testing.assert_close(
            ours.state[param]["momentum_buffer"], theirs.optimizer.state[other[name]]["momentum_buffer"]
        )


@pytest.mark.parametrize(("k", "alpha"), [(6, 0.5), (3, 0.8)])
def test_follows_timm_from_its_first_synchronisation_on(k, alpha):
    # timm's slow weights are born there, and that first synchronisation does nothing.
    mine, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    make = INNER["hfoptim.AdamW"][0]
    inner = make(list(mine.values()))
    theirs = peers.load("timm.optim.lookahead.Lookahead")(make(list(other.values())), alpha=alpha, k=k)
    rows = run_beside(inner, mine, theirs, other, 1e-2, range(1, k + 1))
    assert_follows(*rows, 1e-10)
    ours = Lookahead(inner, k, alpha)
    rows = run_beside(ours, mine, theirs, other, 1e-2, range(k + 1, 6 * k))
    assert_follows(*rows, 1e-10)


@pytest.mark.parametrize("stepped", [0, 4, 6, 8])
def test_a_checkpoint_of_timm_loads_and_goes_on_identically(stepped):
    mine, other = parameters(dtype=torch.float64, seed=1), parameters(dtype=torch.float64)
    theirs = peers.load("timm.optim.lookahead.Lookahead")(torch.optim.AdamW(list(other.values()), lr=1e-2), k=6)
    train(theirs, other, range(1, 1 + stepped))
    ours = Lookahead(torch.optim.AdamW(list(mine.values()), lr=1e-2), k=2)
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert ours.param_groups[0]["lookahead_k"] == 6
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    # Before timm's first synchronisation it has no slow weights, and ours begin where the checkpoint was.
    steps = range(1 + stepped, 19 if stepped >= 6 else 6)
    assert_follows(*run_beside(ours, mine, theirs, other, 1e-2, steps), 1e-10)


def test_by_hand():
    param = torch.nn.Parameter(torch.tensor([1.0, 10.0]))
    optimizer = Lookahead(torch.optim.SGD([param], lr=1.0), k=2, alpha=0.25)
    seen = []
    for _ in range(4):
        param.grad = torch.ones(2)
        optimizer.step()
        seen.append(param[0].item())
    # 1 -> 0 -> -1, a quarter of the way from 1: 0.5; -> -0.5 -> -1.5, a quarter of the way from 0.5: 0.
    assert seen == [0.0, 0.5, -0.5, 0.0]


def test_adams_momentum_is_pulled_back_and_reset_too():
    for pullback in ("reset", "pullback"):
        params = parameters(NAMES)
        optimizer = adamw(params, k=2, pullback_momentum=pullback)
        train(optimizer, params, range(1, 2))
        before = {name: optimizer.state[p]["exp_avg"].clone() for name, p in params.items()}
        plain_params, plain = copy.deepcopy((params, optimizer.optimizer))
        train(optimizer, params, range(2, 3))
        train(plain, plain_params, range(2, 3))
        for name, param in params.items():
            momentum = optimizer.state[param]["exp_avg"]
            if pullback == "reset":
                assert not momentum.any()
            else:  # half the way from 0
                torch.testing.assert_close(momentum, 0.5 * plain.state[plain_params[name]]["exp_avg"])
                assert not torch.equal(momentum, before[name])


def test_a_pullback_of_momentum_without_momentum_is_refused():
    params = parameters(NAMES)
    optimizer = Lookahead(torch.optim.RMSprop(list(params.values())), k=1, pullback_momentum="reset")
    feed(params, 1)
    with pytest.raises(ValueError, match=r"needs a momentum .*RMSprop keeps none"):
        optimizer.step()


def test_slow_weights_have_the_dtype_and_layout_of_the_parameters():
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        params = parameters(dtype=dtype)
        optimizer = Lookahead(torch.optim.SGD(list(params.values()), lr=1e-2, momentum=0.9), k=2)
        train(optimizer, params, range(1, 6))
        for param in params.values():
            slow = optimizer.kept["lookahead_slow_buff"][param]
            assert (slow.dtype, slow.shape, slow.device) == (param.dtype, param.shape, param.device)
            assert not slow.requires_grad


def test_parameters_of_all_dtypes_share_a_lookahead():
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    mixed = {f"{dtype}": parameters(("matrix",), dtype)["matrix"] for dtype in dtypes}
    together = adamw(mixed, k=2)
    for t in range(1, 6):
        for param in mixed.values():
            feed({"matrix": param}, t)
        together.step()
    for dtype in dtypes:
        alone = parameters(("matrix",), dtype)
        train(adamw(alone, k=2), alone, range(1, 6))
        assert_same(mixed[f"{dtype}"].detach(), alone["matrix"].detach())


# -- a torch optimizer ------------------------------------------------------------------------------------------------


@every_inner
def test_groups_state_and_defaults_are_those_of_the_inner_optimizer(make, lr):
    params = parameters(NAMES)
    inner = make(list(params.values()))
    optimizer = Lookahead(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.defaults is inner.defaults
    train(optimizer, params, range(1, 3))
    assert optimizer.state is inner.state
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert unwrap(optimizer) is inner
    assert optimizer.is_second_order is False


def test_learning_rates_and_schedules_are_obeyed():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = adamw(mine, k=3), adamw(other, k=3)
    schedule = schedules.get_scheduler("cosine", ours, num_warmup_steps=2, num_training_steps=12)
    torch_schedule = torch.optim.lr_scheduler.LambdaLR(theirs, schedule.lr_lambdas[0])
    for t in range(1, 11):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        feed(mine, t)
        feed(other, t)
        ours.step()
        theirs.step()
        schedule.step()
        torch_schedule.step()
    assert_same(values(mine), values(other))
    assert ours.optimizer.param_groups[0]["lr"] < 1e-2


def test_options_differ_between_groups_and_can_be_changed():
    params = parameters(NAMES)
    optimizer = Lookahead(
        hfoptim.AdamW(
            [{"params": [params["vector"]], "lookahead_k": 3}, {"params": [params["matrix"]], "lookahead_alpha": 1.0}]
        ),
        k=2,
    )
    optimizer.add_param_group({"params": [params["conv"]], "lookahead_k": 1, "lookahead_alpha": 0.0})
    chosen = [(g["lookahead_k"], g["lookahead_alpha"]) for g in optimizer.param_groups]
    assert chosen == [(3, 0.5), (2, 1.0), (1, 0.0)]
    start = values(params)
    train(optimizer, params, range(1, 3))
    assert_same(params["conv"].detach(), start["conv"])  # always back to the start
    alone = parameters(("matrix",))
    train(hfoptim.AdamW(list(alone.values())), alone, range(1, 3))
    assert_same(params["matrix"].detach(), alone["matrix"].detach())  # all of the way
    for group in optimizer.param_groups:
        group["lookahead_alpha"] = 0.5
    train(optimizer, params, range(3, 4))
    assert not torch.equal(params["conv"], start["conv"])
    with pytest.raises(ValueError, match="lookahead_k=0"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lookahead_k": 0})
    assert len(optimizer.param_groups) == 3


def test_the_closure_reaches_the_inner_optimizer():
    params = parameters(NAMES)
    optimizer = adamw(params, k=1)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params.values())
        loss.backward()
        return loss

    start = values(params)
    loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(sum((p * p).sum().item() for p in start.values()))
    assert_moved(params, start)  # slow weights were there before the first gradients


def test_around_an_optimizer_that_needs_a_closure():
    param = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = Lookahead(torch.optim.LBFGS([param], max_iter=3), k=2)

    def closure():
        optimizer.zero_grad()
        loss = (param**2 * torch.tensor([1.0, 10.0])).sum()
        loss.backward()
        return loss

    for _ in range(10):
        optimizer.step(closure)
    assert param.abs().max() < 0.1
    other = torch.nn.Parameter(param.detach().clone())
    again = Lookahead(torch.optim.LBFGS([other], max_iter=3), k=2)
    again.load_state_dict(optimizer.state_dict())


def test_a_parameter_without_gradients_stays_and_one_that_joins_late_begins_then():
    params = parameters(NAMES)
    start = values(params)
    optimizer = adamw(params, k=2)
    train(optimizer, params, range(1, 6), only=("matrix", "conv"))
    assert_same(params["vector"].detach(), start["vector"])
    assert not optimizer.state.get(params["vector"])
    optimizer.load_state_dict(through_disk(optimizer.state_dict()))
    assert not optimizer.state.get(params["vector"])
    train(optimizer, params, range(6, 8))
    late = parameters(("vector",))
    single = adamw(late, k=2)
    for group in single.param_groups:
        group["lookahead_step"] = 5
    train(single, late, range(6, 8))
    assert_same(params["vector"].detach(), late["vector"].detach())


def test_a_step_without_any_gradient_does_nothing():
    params = parameters(NAMES)
    start = values(params)
    optimizer = adamw(params, k=1)
    assert optimizer.step() is None
    assert_same(values(params), start)
    assert not any(optimizer.state.values())


def test_hooks_of_torch_run():
    params = parameters(("matrix",))
    optimizer = adamw(params, k=1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state_dict: {**state_dict, "note": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state_dict: {k: v for k, v in state_dict.items() if k != "note"}
    )
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(optimizer, params, range(1, 2))
    state_dict = optimizer.state_dict()
    assert state_dict["note"] == 1
    optimizer.load_state_dict(state_dict)
    assert seen == ["before", "after", "saving", "loaded"]


def test_timms_training_loop_finds_its_method():
    params = parameters(NAMES, torch.float64)
    start = values(params)
    optimizer = adamw(params, k=100, alpha=0.5)
    train(optimizer, params, range(1, 4))
    before = values(params)
    optimizer.sync_lookahead()
    for name, param in params.items():
        torch.testing.assert_close(param.detach(), 0.5 * (start[name] + before[name]))


# -- copies and checkpoints -------------------------------------------------------------------------------------------


RESUMED = [
    pytest.param(INNER[name][0], INNER[name][1], dtype, pullback, id=f"{name}-{dtype}-{pullback}")
    for name in INNER
    for dtype in (torch.float32, torch.bfloat16)
    for pullback in ("none", "pullback")
    # torch's own loader rounds the state of bfloat16 parameters; some have no momentum.
    if not (dtype is torch.bfloat16 and name.startswith("torch"))
    and not (pullback == "pullback" and name in ("torch.RMSprop", "hfoptim.Adafactor"))
]


@pytest.mark.parametrize("at", [3, 5, 7])
@pytest.mark.parametrize(("make", "lr", "dtype", "pullback"), RESUMED)
def test_resuming_in_the_middle_of_a_cycle_equals_going_on_bit_for_bit(make, lr, dtype, pullback, at):
    def start(seed=0):
        params = parameters(dtype=dtype, seed=seed)
        return params, Lookahead(make(list(params.values())), k=5, pullback_momentum=pullback)

    whole, optimizer = start()
    present = [name for name in whole if name != "vector"]
    train(optimizer, whole, range(1, at + 1), lr, only=present)
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    resumed, again = start(seed=1)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again.load_state_dict(through_disk(saved))
    assert_same(again.state_dict(), saved)
    train(optimizer, whole, range(at + 1, 13), lr)
    train(again, resumed, range(at + 1, 13), lr)
    assert_same(values(resumed), values(whole))
    assert_same(again.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("by_name", [False, True])
@every_inner
def test_copies_go_on_alike_and_apart(make, lr, by_name, copied):
    params = parameters([name for name in SMALL if name != "gaps"])
    if by_name:
        optimizer = hfoptim.create_optimizer_v2(list(params.items()), "lookahead_adamw", lr=lr or 1e-3)
    else:
        optimizer = Lookahead(make(list(params.values())), k=3)
    train(optimizer, params, range(1, 5))
    other, twin = copied((params, optimizer))
    assert type(twin) is type(optimizer)
    assert twin.param_groups[0]["params"][0] is next(iter(other.values()))
    train(optimizer, params, range(5, 8))
    assert not torch.equal(params["matrix"], other["matrix"])
    train(twin, other, range(5, 8))
    assert_same(values(other), values(params))
    assert_same(twin.state_dict(), optimizer.state_dict())
    twin.load_state_dict(through_disk(optimizer.state_dict()))
    twin.add_param_group({"params": [("more", torch.nn.Parameter(torch.ones(3)))] if by_name else [torch.ones(3)]})


def test_the_state_dict_has_torchs_form():
    params = parameters(NAMES)
    optimizer = adamw(params, k=3)
    assert optimizer.state_dict()["state"] == {}
    train(optimizer, params, range(1, 3))
    state_dict = optimizer.state_dict()
    assert set(state_dict) == {"state", "param_groups"}
    assert set(state_dict["state"]) == {0, 1, 2}
    assert set(state_dict["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "lookahead_slow_buff"}
    group = state_dict["param_groups"][0]
    assert [group[f"lookahead_{name}"] for name in ("k", "alpha", "step")] == [3, 0.5, 2]


def test_the_inner_optimizers_checkpoint_loads_and_lookahead_begins_there():
    params = parameters(NAMES)
    inner = hfoptim.AdamW(list(params.items()), lr=1e-2)
    train(inner, params, range(1, 4))
    saved = through_disk(inner.state_dict())
    mine, other = copy.deepcopy((params, params))
    ours, theirs = adamw(mine, k=2), adamw(other, k=2)
    train(ours, {name: p for name, p in parameters(NAMES, seed=3).items() if name in mine}, range(1, 2))
    ours.load_state_dict(saved)
    theirs.optimizer.load_state_dict(saved)
    assert ours.param_groups[0]["lookahead_step"] == 0
    train(ours, mine, range(4, 9))
    train(theirs, other, range(4, 9))
    assert_same(values(mine), values(other))


def test_the_wrapped_checkpoint_does_not_pass_for_the_inner_optimizers():
    params = parameters(NAMES)
    optimizer = adamw(params)
    train(optimizer, params, range(1, 3))
    with pytest.raises(ValueError, match=r"not one of AdamW: .*lookahead"):
        hfoptim.AdamW(list(parameters(NAMES).items())).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("kind", ["hfoptim", "torch"])
def test_named_parameters_in_another_order_load_by_name(kind):
    cls = hfoptim.AdamW if kind == "hfoptim" else torch.optim.AdamW
    params = parameters(NAMES)
    optimizer = Lookahead(cls(list(params.items()), lr=1e-2), k=2)
    train(optimizer, params, range(1, 4), only=("matrix", "vector"))
    saved = through_disk(optimizer.state_dict())
    again = {name: torch.nn.Parameter(params[name].detach().clone()) for name in reversed(NAMES)}
    resumed = Lookahead(cls(list(again.items()), lr=1e-2), k=2)
    resumed.load_state_dict(saved)
    assert resumed.param_groups[0]["param_names"] == list(again)
    train(resumed, again, range(4, 7))
    train(optimizer, params, range(4, 7))
    for name in NAMES:
        torch.testing.assert_close(again[name], params[name], rtol=1e-6, atol=1e-7)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    params = parameters(NAMES)
    optimizer = adamw(params, k=2)
    train(optimizer, params, range(1, 4))
    saved = through_disk(optimizer.state_dict())

    def changed(change):
        state_dict = copy.deepcopy(saved)
        change(state_dict)
        return state_dict

    before = copy.deepcopy(optimizer.state_dict())
    bad = [
        (changed(lambda s: s["param_groups"][0].update(lookahead_k=0)), "lookahead_k=0"),
        (changed(lambda s: s["param_groups"][0].update(lookahead_alpha=1.5)), r"lookahead_alpha=1\.5"),
        (changed(lambda s: s["param_groups"][0].update(lr=-1.0)), r"lr=-1\.0"),
        (changed(lambda s: s["param_groups"].clear()), "parameter groups"),
        (changed(lambda s: s["param_groups"][0]["params"].pop()), "parameters"),
        (changed(lambda s: s["param_groups"][0].update(param_names=["a", "b", "c"])), "other parameters"),
        (changed(lambda s: s["state"][1].update(lookahead_slow_buff=torch.ones(2))), "lookahead_slow_buff .*shape"),
        (changed(lambda s: s["state"][1].pop("exp_avg")), "exp_avg"),
        ({"state": {}}, "param_groups"),
    ]
    for state_dict, message in bad:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state_dict)
        assert_same(optimizer.state_dict(), before)


@every_inner
def test_a_round_trip_before_any_step_is_harmless(make, lr):
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = Lookahead(make(list(mine.values())), k=2), Lookahead(make(list(other.values())), k=2)
    ours.load_state_dict(ours.state_dict())
    assert not any(ours.state.values())
    assert not any(ours.kept.values())
    train(ours, mine, range(1, 6))
    train(theirs, other, range(1, 6))
    assert_same(values(mine), values(other))


@every_inner
def test_accelerate_prepares_and_resumes_it(make, lr):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    mine, other = parameters(NAMES), parameters(NAMES)
    wrapped = accelerator.prepare(Lookahead(make(list(mine.values())), k=2))
    plain = Lookahead(make(list(other.values())), k=2)
    for t in range(1, 4):
        set_lr(wrapped, t, lr)
        feed(mine, t)
        wrapped.step()
        train(plain, other, range(t, t + 1), lr)
    assert_same(values(mine), values(other))
    again = accelerator.prepare(Lookahead(make(list(parameters(NAMES).values())), k=2))
    again.load_state_dict(through_disk(plain.state_dict()))
    assert_same(again.state_dict()["state"], plain.state_dict()["state"])


def test_a_gradient_scaler_skips_the_step_and_the_count():
    params = parameters(NAMES)
    optimizer = adamw(params, k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    counts = []
    for t in range(1, 5):
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params.values()) * (float("inf") if t == 2 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        counts.append(optimizer.param_groups[0]["lookahead_step"])
    assert counts == [1, 1, 2, 3]


@pytest.mark.parametrize("cls", [torch.optim.AdamW, hfoptim.AdamW])
def test_torch_distributed_checkpoints_have_all_state(cls):
    checkpoint = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    ours, again = (Lookahead(cls(m.parameters(), lr=1e-2), k=3) for m in (model, twin))

    def go(model, optimizer, steps):
        for t in steps:
            feed(dict(model.named_parameters()), t)
            optimizer.step()

    if cls is hfoptim.AdamW:  # asked before the first step, it must not count one
        start = values(dict(model.named_parameters()))
        assert checkpoint.get_optimizer_state_dict(model, ours)["param_groups"][0]["lookahead_step"] == 0
        assert_same(values(dict(model.named_parameters())), start)
    go(model, ours, range(1, 6))
    assert ours.param_groups[0]["lookahead_step"] == 5
    saved = checkpoint.get_optimizer_state_dict(model, ours)
    assert "lookahead_slow_buff" in saved["state"]["weight"]
    twin.load_state_dict(model.state_dict())
    checkpoint.set_optimizer_state_dict(twin, again, copy.deepcopy(saved))
    go(model, ours, range(6, 12))
    go(twin, again, range(6, 12))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


# -- by name ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelled", ["lookahead_adamw", "Lookahead-AdamW", "LOOKAHEAD_ADAM_W"])
def test_by_name(spelled):
    assert registry.canonical_name(spelled) == "lookahead_adamw"
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6))
    optimizer = hfoptim.create_optimizer_v2(model, spelled, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9))
    assert isinstance(optimizer, Lookahead)
    assert type(optimizer) is hfoptim.get_optimizer_info(spelled).opt_class
    assert type(optimizer.optimizer) is hfoptim.Adam
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert [(g["lookahead_k"], g["lookahead_alpha"], g["lr"]) for g in optimizer.param_groups] == [(6, 0.5, 1e-2)] * 2
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1]
    optimizer = hfoptim.create_optimizer_v2(model, spelled, lookahead_k=3, lookahead_pullback_momentum="reset")
    assert optimizer.param_groups[0]["lookahead_k"] == 3
    assert optimizer.param_groups[0]["lookahead_pullback_momentum"] == "reset"


def test_what_is_bound_to_a_name_stays_bound():
    optimizer = hfoptim.create_optimizer_v2([torch.nn.Parameter(torch.ones(2, 2))], "lookahead_nesterov", lr=0.1)
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    assert registry.canonical_name("lookahead_nesterov") == "lookahead_sgd"
    optimizer = hfoptim.create_optimizer_v2([torch.nn.Parameter(torch.ones(2, 2))], "lookahead_adafactor", lr=1e-3)
    assert optimizer.defaults["relative_step"] is False


def test_every_optimizer_can_be_had_by_name():
    for name in hfoptim.list_optimizers():
        info = hfoptim.get_optimizer_info(f"lookahead_{name}")
        assert info.name == f"lookahead_{name}"
        assert hfoptim.get_optimizer_info(f"lookahead_{name}") is info
        assert inspect.getdoc(info.opt_class)
        params = inspect.signature(info.opt_class).parameters
        assert set(inspect.signature(hfoptim.get_optimizer_info(name).opt_class).parameters) <= set(params)
        create = hfoptim.get_optimizer_class(f"lookahead_{name}")
        assert isinstance(create([("weight", torch.nn.Parameter(torch.ones(2, 2)))]), Lookahead)
    assert not [name for name in hfoptim.list_optimizers() if name.startswith("lookahead")]


def test_mistakes_in_names_and_options():
    param = [torch.nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(ValueError, match=r"unknown optimizer 'lookahead_adamww'.*'lookahead_adamw'"):
        hfoptim.create_optimizer_v2(param, "lookahead_adamww")
    with pytest.raises(ValueError, match=r"'lookahead'.*lookahead_sgd"):
        hfoptim.create_optimizer_v2(param, "lookahead")
    with pytest.raises(ValueError, match=r"'lookahead_kk'.*'lookahead_k'"):
        hfoptim.create_optimizer_v2(param, "lookahead_adamw", lookahead_kk=3)
    with pytest.raises(ValueError, match="lookahead_k=0"):
        hfoptim.create_optimizer_v2(param, "lookahead_adamw", lookahead_k=0)


def test_bad_input():
    inner = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    for options, error in (
        ({"k": 0}, "k=0"),
        ({"k": 2.5}, r"k=2\.5"),
        ({"alpha": -0.1}, r"alpha=-0\.1"),
        ({"alpha": 1.1}, r"alpha=1\.1"),
        ({"alpha": "half"}, "alpha='half'"),
        ({"pullback_momentum": "half"}, "'half'.*none, reset, pullback"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            Lookahead(inner, **options)
    assert not any(name.startswith("lookahead") for name in inner.param_groups[0])
    with pytest.raises(TypeError, match=r"goes around a torch\.optim\.Optimizer, not around a list"):
        Lookahead([torch.nn.Parameter(torch.ones(2))])
    released = hfoptim.Lion([torch.nn.Parameter(torch.ones(2))], gradient_release=True)
    with pytest.raises(ValueError, match="gradient release takes inside of backward"):
        Lookahead(released)
    with pytest.raises(ValueError, match="cannot go around another Lookahead"):
        Lookahead(Lookahead(inner))


def test_the_page_of_documentation_runs():
    text = (Path(hfoptim.__file__).resolve().parents[1] / "docs" / "wrappers.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code.count("hfoptim.create_optimizer_v2") == 3
    exec(compile(code, "docs/wrappers.md", "exec"), {})


def test_the_comparison_counts_slow_weights():
    params = parameters(NAMES)
    optimizer = adamw(params)
    train(optimizer, params, range(1, 2))
    plain = hfoptim.AdamW(list(params.values()))
    train(plain, params, range(1, 2))
    assert state_bytes_per_param(optimizer) == state_bytes_per_param(plain) + 4
