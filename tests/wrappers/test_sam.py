"""SAM: its numbers, the two steps and what lies between them."""

from __future__ import annotations

import copy
import functools
import pickle
import sys
import types
import warnings

import peers
import pytest
import torch
from harness import assert_follows, assert_moved, assert_same, flattened, parameters, set_lr, through_disk, values

import hfoptim
from hfoptim import SAM, Lookahead, registry

NAMES = ("scalar", "vector", "matrix", "conv", "transposed")
# Base optimizers of all kinds: the class, its options, and the learning rate to try it with.
BASES = {
    "torch.SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}, 1e-2),
    "torch.AdamW": (torch.optim.AdamW, {"lr": 1e-2}, 1e-2),
    "hfoptim.AdamW": (hfoptim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}, 1e-2),
    "hfoptim.Lion": (hfoptim.Lion, {"lr": 1e-3}, 1e-3),
    "hfoptim.Adafactor": (hfoptim.Adafactor, {}, None),
}
every_base = pytest.mark.parametrize(("cls", "options", "lr"), [pytest.param(*v, id=k) for k, v in BASES.items()])


def loss_of(params, t=0):
    """A loss with curvature everywhere, another one at every step."""
    flat = torch.cat([p.reshape(-1) for p in params.values()])
    shift = torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype) * (1 + t % 3)
    return 0.1 * ((flat - shift) ** 4).sum() + 0.5 * (flat.sin() * flat.roll(1)).sum()


def step(optimizer, params, t):
    """One step as davda54 writes it."""
    optimizer.zero_grad()
    loss_of(params, t).backward()

    def closure():
        loss = loss_of(params, t)
        loss.backward()
        return loss

    return optimizer.step(closure)


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@every_base
def test_follows_pytorch_optimizer(cls, options, lr, adaptive, monkeypatch):
    # Whose norm is float32, and has to be float64 for the comparison.
    def square_of_norm(groups, weight_adaptive):
        sized = [p.grad * p.abs() if g["adaptive"] else p.grad for g in groups for p in g["params"]]
        return torch.cat([s.detach().reshape(-1) for s in sized]).square().sum().reshape(1)

    peer = peers.load("pytorch_optimizer.SAM")
    monkeypatch.setattr(sys.modules[peer.__module__], "get_global_gradient_norm", square_of_norm)
    mine, other = parameters(NAMES, torch.float64), parameters(NAMES, torch.float64)
    start = values(mine)
    ours = SAM(list(mine.values()), cls, rho=0.1, adaptive=adaptive, **options)
    theirs = peer(list(other.values()), cls, rho=0.1, adaptive=adaptive, **options)
    rows = ([], [])
    for t in range(1, 33):
        for optimizer, params, row in ((ours, mine, rows[0]), (theirs, other, rows[1])):
            set_lr(optimizer, t, lr)
            step(optimizer, params, t)
            row.append(flattened(params))
    assert_follows(*rows, start, 1e-10)
    assert_moved(mine, start)


def test_by_hand():
    param = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    optimizer = SAM([param], torch.optim.SGD, lr=0.1, rho=0.5)
    (param**2).sum().backward()  # gradient 6, -8
    optimizer.first_step(zero_grad=True)
    torch.testing.assert_close(param.detach(), torch.tensor([3.3, -4.4], dtype=torch.float64))
    assert param.grad is None
    (param**2).sum().backward()
    optimizer.second_step(zero_grad=True)
    torch.testing.assert_close(param.detach(), torch.tensor([3 - 0.66, -4 + 0.88], dtype=torch.float64))
    assert param.grad is None


def test_both_ways_of_stepping_are_one():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (SAM(list(p.values()), "adamw", lr=1e-2) for p in (mine, other))
    for t in range(1, 5):
        loss = step(ours, mine, t)
        loss_of(other, t).backward()
        theirs.first_step(zero_grad=True)
        worst = loss_of(other, t)
        worst.backward()
        theirs.second_step(zero_grad=True)
        assert loss.item() == worst.item()
    assert_same(values(mine), values(other))


def by_hand(optimizer, params, t):
    """One step in two halves, from the gradients at the weights."""
    optimizer.zero_grad()
    loss = loss_of(params, t)
    loss.backward()
    optimizer.first_step(zero_grad=True)
    loss_of(params, t).backward()
    optimizer.second_step()
    return loss


@pytest.mark.parametrize("cleared", ["none", "zeros", "outside", "zeros_outside", "never"])
@every_base
def test_a_closure_computes_both_gradients_where_there_are_none(cls, options, lr, cleared):
    # Loops written for torch: the closure begins with zero_grad(), and what the last step has used is there before.
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (SAM(list(p.values()), cls, rho=0.1, **options) for p in (mine, other))
    calls = []

    def closure_of(t):
        def closure():
            calls.append(torch.is_grad_enabled())
            if cleared in ("none", "zeros"):
                ours.zero_grad(set_to_none=cleared == "none")
            loss = loss_of(mine, t)
            loss.backward()
            return loss

        return closure

    for t in range(1, 5):
        if cleared.endswith("outside"):
            ours.zero_grad(set_to_none=cleared == "outside")
        loss = ours.step(closure_of(t))
        assert loss.item() == by_hand(theirs, other, t).item()  # at the weights
    assert calls == [True] * 8
    assert_same(values(mine), values(other))
    assert_same(ours.state_dict(), theirs.state_dict())


def test_gradients_that_were_made_since_the_last_step_are_the_first_ones():
    mine, other = parameters(NAMES), parameters(NAMES)
    ours, theirs = (SAM(list(p.values()), torch.optim.SGD, lr=1e-2) for p in (mine, other))
    calls = []
    for t in range(1, 5):
        for optimizer, params in ((ours, mine), (theirs, other)):
            if t % 2:  # otherwise they are added to those of the last step
                optimizer.zero_grad(set_to_none=t == 3)
            loss_of(params, t).backward()

        def closure(t=t):
            calls.append(t)
            loss = loss_of(mine, t)
            loss.backward()
            return loss

        ours.step(closure)
        theirs.first_step(zero_grad=True)
        loss_of(other, t).backward()
        theirs.second_step()
    assert calls == [1, 2, 3, 4]
    assert_same(values(mine), values(other))


def test_what_lightnings_automatic_optimization_cannot_repeat_is_refused_and_what_it_leaves_out_is_left_out():
    # Lightning hands its closure over in a partial, with the module; backward of earlier batches came before.
    module = types.SimpleNamespace(automatic_optimization=True)
    params = parameters(NAMES)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)
    start = values(params)
    loss_of(params).backward()
    with pytest.raises(RuntimeError, match=r"gradients of earlier batches are there.*accumulate_grad_batches=1"):
        optimizer.step(functools.partial(lambda _: loss_of(params).backward(), module))
    optimizer.zero_grad()
    assert optimizer.step(functools.partial(lambda _: None, module)) is None
    assert_same(values(params), start)
    assert not any(optimizer.state.values())


def test_a_closure_that_fails_before_the_first_gradients_changes_nothing():
    params = parameters(NAMES)
    start = values(params)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)

    def closure():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    by_hand(optimizer, params, 1)
    assert_moved(params, start)


def test_maximize_looks_for_the_lowest_point():
    mine, other = parameters(NAMES), parameters(NAMES)
    up = SAM(list(mine.values()), hfoptim.AdamW, lr=1e-2, maximize=True)
    down = SAM(list(other.values()), hfoptim.AdamW, lr=1e-2)
    for t in range(1, 5):
        for optimizer, params, sign in ((up, mine, -1.0), (down, other, 1.0)):
            (sign * loss_of(params, t)).backward()
            optimizer.first_step(zero_grad=True)
            (sign * loss_of(params, t)).backward()
            optimizer.second_step(zero_grad=True)
    assert_same(values(mine), values(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_weights_are_set_back_bit_for_bit(dtype):
    params = parameters(dtype=dtype)
    start = values(params)
    optimizer = SAM(list(params.values()), torch.optim.SGD, lr=0.0, rho=0.37)
    for t in range(1, 6):
        optimizer.zero_grad()
        loss_of(params, t).backward()
        optimizer.first_step()
        assert not torch.equal(params["matrix"], start["matrix"])
        optimizer.second_step()
        assert_same(values(params), start)


def test_groups_have_their_own_radius_and_share_one_norm():
    params = parameters(("vector", "matrix"), torch.float64)
    optimizer = SAM(
        [{"params": [params["vector"]], "rho": 0.2}, {"params": [params["matrix"]], "adaptive": True}],
        torch.optim.SGD,
        lr=0.1,
        rho=0.3,
    )
    start = values(params)
    loss_of(params).backward()
    sized = {"vector": params["vector"].grad, "matrix": params["matrix"].grad * start["matrix"].abs()}
    norm = torch.cat([s.reshape(-1) for s in sized.values()]).norm()
    optimizer.first_step()
    torch.testing.assert_close(params["vector"].detach(), start["vector"] + 0.2 * params["vector"].grad / norm)
    torch.testing.assert_close(
        params["matrix"].detach(), start["matrix"] + 0.3 * start["matrix"] ** 2 * params["matrix"].grad / norm
    )


def test_low_precision_gradients_have_a_float32_norm():
    # 70000 squares of 1 leave float16's range, and 256 ones are the most that a bfloat16 sum can count.
    for dtype in (torch.float16, torch.bfloat16):
        param = torch.nn.Parameter(torch.zeros(70_000, dtype=dtype))
        optimizer = SAM([param], torch.optim.SGD, lr=0.1, rho=70_000**0.5)
        param.grad = torch.ones_like(param)
        optimizer.first_step()
        torch.testing.assert_close(param.detach(), torch.ones_like(param), rtol=1e-2, atol=0.0)


def test_gradients_of_zero_are_no_division_by_zero():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = SAM([param], torch.optim.SGD, lr=0.1)
    param.grad = torch.zeros(3)
    optimizer.first_step()
    optimizer.second_step()
    assert_same(param.detach(), torch.ones(3))


def test_complex_parameters():
    param = torch.nn.Parameter(torch.tensor([3 + 4j, 1 - 1j], dtype=torch.complex128))
    optimizer = SAM([param], torch.optim.SGD, lr=0.1, rho=2.0)
    start = param.detach().clone()
    (param.abs() ** 2).sum().backward()
    optimizer.first_step()
    moved = param.detach() - start
    assert torch.linalg.vector_norm(moved).item() == pytest.approx(2.0)
    torch.testing.assert_close(moved / moved.abs(), start / start.abs())


# -- the two steps ----------------------------------------------------------------------------------------------------


def test_a_parameter_without_gradients_stays():
    params = parameters(("vector", "matrix"))
    start = values(params)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)
    for t in range(1, 4):
        step(optimizer, {"matrix": params["matrix"]}, t)
    assert_same(params["vector"].detach(), start["vector"])
    assert not optimizer.state.get(params["vector"])
    assert not torch.equal(params["matrix"], start["matrix"])


def test_a_gradient_that_only_the_second_pass_has_is_used():
    params = parameters(("vector", "matrix"))
    start = values(params)
    optimizer = SAM(list(params.values()), torch.optim.SGD, lr=1e-2)
    loss_of({"matrix": params["matrix"]}).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(params).backward()
    optimizer.second_step()
    assert_moved(params, start)


def test_the_closure_is_called_once_where_the_first_gradients_are_there():
    params = parameters(NAMES)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)
    calls = []

    def closure():
        calls.append((torch.is_grad_enabled(), all(p.grad is None for p in params.values())))
        loss = loss_of(params)
        loss.backward()
        return loss

    loss_of(params).backward()
    with torch.no_grad():
        optimizer.step(closure)
    assert calls == [(True, True)]


def test_a_closure_that_fails_leaves_the_weights_where_they_were():
    params = parameters(NAMES)
    start = values(params)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)

    def closure():
        raise KeyboardInterrupt

    loss_of(params).backward()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert_same(values(params), start)
    step(optimizer, params, 1)
    assert_moved(params, start)


def test_steps_in_the_wrong_order_are_refused():
    params = parameters(NAMES)
    start = values(params)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)
    with pytest.raises(ValueError, match=r"two gradients per step.*closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"no parameter has one; call loss\.backward"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="no parameter has one"):
        optimizer.step(lambda: loss_of(params))
    loss_of(params).backward()
    with pytest.raises(RuntimeError, match="second_step needs first_step"):
        optimizer.second_step()
    assert_same(values(params), start)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match="first_step was called twice"):
        optimizer.first_step()
    optimizer.second_step()


def test_hooks_of_torch_and_schedules_work():
    params = parameters(NAMES)
    optimizer = SAM(list(params.values()), hfoptim.AdamW, lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    for t in range(2):
        step(optimizer, params, t)
        schedule.step()
    assert seen == ["before", "after"] * 2
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 2.5e-3


def test_a_schedule_sees_the_steps_of_a_loop_by_hand():
    params = parameters(NAMES)
    optimizer = SAM(list(params.values()), "adamw", lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that no step came before the schedule's
        for t in range(2):
            by_hand(optimizer, params, t)
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == 2.5e-3


def test_a_loop_with_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    wrapped_model, wrapped = accelerator.prepare(model, SAM(model.parameters(), "adamw", lr=1e-2))
    plain = SAM(twin.parameters(), "adamw", lr=1e-2)
    batch = torch.randn(8, 4)

    def closure_of(model, backward):
        def closure():
            loss = model(batch).square().mean()
            backward(loss)
            return loss

        return closure

    for _ in range(4):
        for net, optimizer, backward in (
            (wrapped_model, wrapped, accelerator.backward),
            (twin, plain, lambda loss: loss.backward()),
        ):
            closure = closure_of(net, backward)
            closure()
            optimizer.step(closure)
            optimizer.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_lookahead_goes_around_it():
    params = parameters(NAMES)
    start = values(params)
    optimizer = Lookahead(SAM(list(params.values()), "adamw", lr=1e-2), k=2)
    for t in range(1, 4):
        step(optimizer, params, t)
    assert_moved(params, start)
    state = optimizer.state_dict()["state"][0]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq", "lookahead_slow_buff"}
    again = Lookahead(SAM(list(parameters(NAMES).values()), "adamw", lr=1e-2), k=2)
    again.load_state_dict(through_disk(optimizer.state_dict()))
    assert_same(again.state_dict(), optimizer.state_dict())


# -- copies and checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", [False, True], ids=["after", "between"])
@every_base
def test_resuming_equals_going_on_bit_for_bit(cls, options, lr, between):
    def start(seed=0):
        params = parameters(NAMES, seed=seed)
        return params, SAM(list(params.values()), cls, rho=0.1, **options)

    whole, optimizer = start()
    for t in range(1, 4):
        step(optimizer, whole, t)
    optimizer.zero_grad()
    if between:  # the two steps
        loss_of(whole).backward()
        optimizer.first_step(zero_grad=True)
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    assert ("old_p" in saved["state"][0]) is between
    resumed, again = start(seed=1)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again.load_state_dict(through_disk(saved))
    assert_same(again.state_dict(), saved)
    for run, params in ((optimizer, whole), (again, resumed)):
        if between:
            loss_of(params).backward()
            run.second_step()
        for t in range(5, 8):
            step(run, params, t)
    assert_same(values(resumed), values(whole))
    assert_same(again.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("by_name", [False, True])
def test_copies_go_on_alike_and_apart(by_name, copied):
    params = parameters(NAMES)
    if by_name:
        optimizer = hfoptim.create_optimizer_v2(list(params.values()), "sam_adamw", lr=1e-2)
    else:
        optimizer = SAM(list(params.values()), hfoptim.AdamW, lr=1e-2)
    for t in range(1, 3):
        step(optimizer, params, t)
    optimizer.zero_grad()
    other, twin = copied((params, optimizer))
    assert type(twin) is type(optimizer)
    step(optimizer, params, 3)
    assert not torch.equal(params["matrix"], other["matrix"])
    step(twin, other, 3)
    assert_same(values(other), values(params))


def test_groups_keep_their_radius_when_the_base_optimizer_alone_was_loaded():
    params = parameters(NAMES)
    optimizer = SAM(list(params.values()), "adamw_hf", lr=1e-2, rho=0.2)
    base = hfoptim.AdamW(list(parameters(NAMES).values()))
    for load in (optimizer.load_state_dict, optimizer.base_optimizer.load_state_dict):
        load(base.state_dict())
        step(optimizer, params, 1)
        assert optimizer.param_groups[0]["rho"] == 0.2


# -- how it is made ---------------------------------------------------------------------------------------------------


def test_the_base_optimizer_may_be_a_class_a_name_or_an_optimizer():
    made = []
    for how in ("class", "name", "optimizer", "none"):
        params = parameters(NAMES)
        if how == "class":
            optimizer = SAM(list(params.items()), hfoptim.AdamW, lr=1e-2, weight_decay=0.1)
        elif how == "name":
            optimizer = SAM(list(params.items()), "AdamW-HF", lr=1e-2, weight_decay=0.1)
        else:
            base = hfoptim.AdamW(list(params.items()), lr=1e-2, weight_decay=0.1)
            optimizer = SAM(list(params.items()) if how == "optimizer" else None, base)
            assert optimizer.base_optimizer is base
        step(optimizer, params, 1)
        made.append((values(params), optimizer.state_dict()))
    for other in made[1:]:
        assert_same(other, made[0])


def test_what_a_name_stands_for_is_taken_over():
    optimizer = SAM([torch.nn.Parameter(torch.ones(2))], "sgd", lr=0.1)
    assert optimizer.defaults["nesterov"] is True
    optimizer = SAM([torch.nn.Parameter(torch.ones(2))], "adafactor", lr=1e-3)
    assert optimizer.defaults["relative_step"] is False


@pytest.mark.parametrize("spelled", ["sam_adamw", "SAM-AdamW"])
def test_by_name(spelled):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6))
    optimizer = hfoptim.create_optimizer_v2(model, spelled, lr=1e-2, weight_decay=0.1, rho=0.1, adaptive=True)
    assert isinstance(optimizer, SAM)
    assert type(optimizer) is hfoptim.get_optimizer_info(spelled).opt_class
    assert [(g["rho"], g["adaptive"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, True, 0.0),
        (0.1, True, 0.1),
    ]
    assert registry.canonical_name(spelled) == "sam_adamw"
    assert hfoptim.get_optimizer_info(spelled).needs_closure
    assert not hfoptim.get_optimizer_info("adamw").needs_closure
    with pytest.raises(ValueError, match="'sam' goes around another optimizer"):
        hfoptim.create_optimizer_v2(model, "sam")


def test_bad_input():
    params = [torch.nn.Parameter(torch.ones(2))]
    for options, error in (
        ({"rho": -0.1}, r"rho=-0\.1"),
        ({"rho": float("nan")}, "rho=nan"),
        ({"rho": "small"}, "rho='small'"),
        ({"adaptive": 1}, "adaptive=1"),
        ({"momentun": 0.9}, "momentun"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            SAM(params, hfoptim.SGD, lr=0.1, **options)
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamww'.*'adamw'"):
        SAM(params, "adamww")
    with pytest.raises(ValueError, match="adamw has no option 'momentum'"):
        SAM(params, "adamw", momentum=0.9)
    with pytest.raises(TypeError, match="base_optimizer=3 is no optimizer"):
        SAM(params, 3)
    base = torch.optim.SGD(params, lr=0.1)
    with pytest.raises(TypeError, match=r"options \(lr\) are of no use"):
        SAM(params, base, lr=0.1)
    with pytest.raises(ValueError, match="not the parameters of the SGD given"):
        SAM([torch.nn.Parameter(torch.ones(2))], base)
    with pytest.raises(ValueError, match="cannot go around another SAM"):
        SAM(None, SAM(None, base))
    for make in (lambda: SAM(params, torch.optim.LBFGS), lambda: hfoptim.create_optimizer_v2(params, "sam_lbfgs")):
        with pytest.raises(ValueError, match="LBFGS computes gradients at points of its own"):
            make()
    # Adadelta's rho is a decay rate.
    with pytest.raises(ValueError, match="Adadelta has an option 'rho' of its own"):
        SAM(params, torch.optim.Adadelta)
