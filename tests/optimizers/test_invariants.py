"""What holds for every optimizer, whatever its mathematics."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from harness import (
    SMALL,
    assert_follows,
    assert_moved,
    assert_same,
    feed,
    flattened,
    lr_at,
    parameters,
    set_lr,
    through_disk,
    train,
    values,
)
from tiers import every_kind_of_variant, every_variant, variants

import hfoptim
import schedules
from hfoptim.engine.pieces import PIECE

LOW = (torch.bfloat16, torch.float16)


def decays(variant):
    return bool(variant.options.get("weight_decay") or variant.options.get("weight_decay_rate"))


def of(choose, by_kind=False):
    return pytest.mark.parametrize(("entry", "variant"), variants(choose, by_kind))


every_variant_with_lr = of(lambda v: v.lr is not None)
every_kind_of_variant_with_lr = of(lambda v: v.lr is not None, by_kind=True)
every_kind_of_lone_variant = of(lambda v: v.alone, by_kind=True)


def build(entry, variant, params, **options):
    return entry.cls(list(params.items()), **{**variant.options, **options})


def states(optimizer, params):
    return {name: dict(optimizer.state[param]) for name, param in params.items()}


def assert_same_run(ours, mine, theirs, other):
    """Parameters and state of two optimizers are equal bit for bit."""
    assert_same(values(mine), values(other))
    assert_same(states(ours, mine), states(theirs, other))


# -- how a step is computed ------------------------------------------------------------------------------------------


# float64 shows every error; the low precisions keep what rounding takes in another way. That tensors are cut is of the
# engine: one optimizer of each kind.
IN_FULL = [
    pytest.param(*each.values, dtype, None, id=f"{each.id}-{dtype}-whole", marks=[*each.marks, *more])
    for each in variants()
    for dtype in (torch.float64, torch.float32, *LOW)
    for more in [[] if dtype is torch.float64 else [pytest.mark.slow]]
]
IN_PIECES = [
    pytest.param(*each.values, dtype, 20, id=f"{each.id}-{dtype}-pieces", marks=[*each.marks, *more])
    for each in variants(by_kind=True)
    for dtype in (torch.float64, torch.float32, *LOW)
    for more in [[] if dtype is torch.float64 else [pytest.mark.slow]]
]


@pytest.mark.parametrize(("entry", "variant", "dtype", "piece"), [*IN_FULL, *IN_PIECES])
def test_foreach_equals_the_loop(entry, variant, dtype, piece, monkeypatch):
    layouts = (*SMALL, "large") if piece is None else SMALL
    mine, other = parameters(layouts, dtype), parameters(layouts, dtype)
    start = values(mine)
    foreach, loop = build(entry, variant, mine, foreach=True), build(entry, variant, other, foreach=False)
    rows = ([], [])
    for t in range(1, 6):
        for optimizer, params, row in zip((foreach, loop), (mine, other), rows, strict=True):
            set_lr(optimizer, t, variant.lr)
            feed(params, t, follow=other)
            before = {name: (p.grad, p.grad.clone()) for name, p in params.items()}
            with monkeypatch.context() as patch:
                if piece is not None and optimizer is foreach:  # tensors of more entries are cut
                    patch.setitem(PIECE, "cpu", piece)
                optimizer.step()
            for name, (grad, copied) in before.items():
                assert params[name].grad is grad, name
                assert torch.equal(grad, copied), name
            row.append(flattened(params))
    assert_follows(*rows, start, 1e-12 if dtype is torch.float64 else 1e-5)
    if dtype not in LOW:  # where a few small steps may stay in the compensation
        assert_moved(other, start)


@every_kind_of_lone_variant
def test_a_parameter_steps_alike_alone_and_among_others(entry, variant):
    together = parameters()
    train(build(entry, variant, together), together, range(1, 5), variant.lr)
    for name in together:
        alone = parameters((name,))
        train(build(entry, variant, alone), alone, range(1, 5), variant.lr)
        assert_same(alone[name].detach(), together[name].detach(), name)


@every_kind_of_variant
def test_dtypes_and_devices_are_kept(entry, variant):
    for dtype in (torch.float32, torch.float64, *LOW):
        params = parameters(dtype=dtype)
        before = {name: (p.dtype, p.stride(), p.data_ptr()) for name, p in params.items()}
        optimizer = build(entry, variant, params)
        train(optimizer, params, range(1, 3))
        assert {name: (p.dtype, p.stride(), p.data_ptr()) for name, p in params.items()} == before
        groups = [(group, param) for group in optimizer.param_groups for param in group["params"]]
        for name, state in states(optimizer, params).items():
            step = state.pop("step")
            assert (step.dtype, step.device.type, step.shape, step.item()) == (torch.float32, "cpu", (), 2.0)
            compensation = state.pop("kahan_comp", None)
            assert (compensation is not None) == (dtype in LOW)
            assert compensation is None or compensation.dtype is dtype
            wide = torch.float64 if dtype is torch.float64 else torch.float32
            [rule] = [optimizer.rule_for(param, group) for group, param in groups if param is params[name]]
            narrow = {key for key in state if key in rule.state and rule.state[key].narrow and wide is torch.float32}
            assert all(tensor.dtype is (torch.bfloat16 if key in narrow else wide) for key, tensor in state.items())


@every_kind_of_lone_variant
def test_parameters_of_all_dtypes_share_an_optimizer(entry, variant):
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    mixed = {f"{dtype}": parameters(("matrix",), dtype)["matrix"] for dtype in dtypes}
    optimizer = build(entry, variant, mixed)
    for t in range(1, 4):
        for param in mixed.values():
            feed({"matrix": param}, t)
        optimizer.step()
    for dtype in dtypes:
        alone = parameters(("matrix",), dtype)
        train(build(entry, variant, alone), alone, range(1, 4))
        assert_same(mixed[f"{dtype}"].detach(), alone["matrix"].detach())


@every_kind_of_variant
def test_state_does_not_follow_the_default_dtype(entry, variant):
    params = parameters()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = build(entry, variant, params)
        train(optimizer, params, range(1, 3))
    finally:
        torch.set_default_dtype(torch.float32)
    other = parameters()
    again = build(entry, variant, other)
    train(again, other, range(1, 3))
    assert_same_run(optimizer, params, again, other)


@every_kind_of_variant
def test_gradients_are_left_as_they_were(entry, variant):
    for options in ({"foreach": False}, {"foreach": True}, {"foreach": True, "maximize": True}):
        for dtype in (torch.float32, torch.bfloat16):
            params = parameters((*SMALL, "large"), dtype)
            optimizer = build(entry, variant, params, **options)
            for t in range(1, 3):
                feed(params, t)
                before = {name: (p.grad, p.grad.clone(), p.grad._version) for name, p in params.items()}
                optimizer.step()
                for name, (grad, copied, version) in before.items():
                    assert params[name].grad is grad
                    assert torch.equal(grad, copied), name
                    assert grad._version == version, name


@every_kind_of_variant
def test_maximize_is_descent_on_the_negated_gradient(entry, variant):
    mine, other = parameters(), parameters()
    up, down = build(entry, variant, mine), build(entry, variant, other)
    for group in up.param_groups:
        group["maximize"] = not variant.options.get("maximize", False)
    for t in range(1, 6):
        feed(mine, t)
        for name, param in mine.items():
            other[name].grad = -param.grad
        up.step()
        down.step()
    assert_same_run(up, mine, down, other)


@of(lambda v: not decays(v), by_kind=True)
def test_caution_drops_what_points_against_the_gradient_and_scales_the_rest(entry, variant):
    layouts = ("vector", "matrix", "conv")
    params = parameters(layouts, torch.float64)
    optimizer = build(entry, variant, params, caution=True)
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0  # some decay at their defaults; caution is of the update alone
    if entry.name == "sparse_adam":
        feed(params, 1)
        with pytest.raises(TypeError, match="does not take with caution=True"):
            optimizer.step()
        return
    uphill = variant.options.get("maximize", False)
    dropped = kept = 0
    for t in range(1, 9):
        before = values(params)
        feed(params, t)
        plain_params, plain = copy.deepcopy((params, optimizer))
        for group in plain.param_groups:
            group["caution"] = False
        feed(plain_params, t)
        optimizer.step()
        plain.step()
        for name, param in params.items():
            moved, plainly = before[name] - param.detach(), before[name] - plain_params[name].detach()
            mask = (plainly * (-param.grad if uphill else param.grad) > 0).double()
            torch.testing.assert_close(moved, plainly * mask / mask.mean().clamp(min=1e-3), rtol=1e-9, atol=1e-13)
            dropped, kept = dropped + int((mask == 0).sum()), kept + int(mask.sum())
        assert_same(states(optimizer, params), states(plain, plain_params))
    assert kept > 0
    if any("exp_avg" in state or "momentum_buffer" in state for state in optimizer.state.values()):
        assert dropped > 0, "no momentum ever pointed against its gradient: nothing was tested"


def test_caution_scales_up_by_a_thousand_at_most():
    # The paper's code clamps the mean of the mask at 1e-3.
    param = torch.nn.Parameter(torch.zeros(4000, dtype=torch.float64))
    optimizer = hfoptim.Lion([param], lr=1e-3, caution=True)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert_same(param.detach(), torch.full_like(param, -1e-3).detach())
    before = param.detach().clone()
    param.grad = torch.full_like(param, -1e-3)  # against the momentum, all but one entry
    param.grad[7] = 1.0
    optimizer.step()
    moved = before - param.detach()
    assert moved[7].item() == pytest.approx(1e-3 * 1000)
    assert int((moved != 0).sum()) == 1


@every_variant_with_lr
def test_a_learning_rate_of_zero_changes_nothing(entry, variant):
    params = parameters()
    start = values(params)
    optimizer = build(entry, variant, params)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(optimizer, params, range(1, 4))
    balanced = entry.name == "nero" and variant.options.get("constraints", True)
    given = "init_eta" in variant.options or variant.options.get("fixed_decay", False)
    if entry.name == "srmm" or balanced or given:
        # They go to an average, or to balanced weights, take a first step of a given size or decay, whatever lr is.
        assert_moved({"conv": params["conv"]}, start)
    else:
        assert_same(values(params), start)


# That each one takes a tensor is in test_plain_values.py.
@every_kind_of_variant_with_lr
def test_the_learning_rate_may_be_a_tensor(entry, variant):
    mine, other = parameters(), parameters()
    ours, theirs = build(entry, variant, mine), build(entry, variant, other)
    lr = torch.tensor(variant.lr, dtype=torch.float64)
    for group in ours.param_groups:
        group["lr"] = lr
    for t in range(1, 6):
        lr.fill_(lr_at(variant.lr, t))  # filled in place, as schedules do
        set_lr(theirs, t, variant.lr)
        feed(mine, t)
        feed(other, t)
        ours.step()
        theirs.step()
        assert all(group["lr"] is lr for group in ours.param_groups)
    assert_same_run(ours, mine, theirs, other)


@every_kind_of_variant_with_lr
def test_a_learning_rate_tensor_given_to_the_constructor_is_obeyed_as_it_changes(entry, variant):
    name = "learning_rate" if "learning_rate" in variant.options else "lr"
    mine, other = parameters(), parameters()
    lr = torch.tensor(variant.lr, dtype=torch.float64)
    ours = build(entry, variant, mine, **{name: lr})
    theirs = build(entry, variant, other, **{name: variant.lr})
    for t in range(1, 6):
        for group in ours.param_groups:
            group["lr"].fill_(lr_at(variant.lr, t))
        set_lr(theirs, t, variant.lr)
        feed(mine, t)
        feed(other, t)
        ours.step()
        theirs.step()
    assert_same_run(ours, mine, theirs, other)


def test_the_peak_of_fully_decoupled_decay_is_a_number_of_its_own():
    # A schedule fills a learning-rate tensor in place: the peak that was taken from it must stay.
    mine, other = parameters(("matrix",)), parameters(("matrix",))
    lr = torch.tensor(1e-2, dtype=torch.float64)
    options = {"decouple_lr": True, "weight_decay": 0.01}
    ours = hfoptim.Adam(list(mine.values()), lr=lr, **options)
    theirs = hfoptim.Adam(list(other.values()), lr=1e-2, max_lr=1e-2, **options)
    for t in range(1, 6):
        ours.param_groups[0]["lr"].fill_(lr_at(1e-2, t))
        set_lr(theirs, t, 1e-2)
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
    assert_same(values(mine), values(other))


@of(lambda v: v.alone and v.lr is not None)
def test_groups_have_their_own_numbers_and_runners(entry, variant):
    params = parameters(("matrix", "vector", "conv"))
    optimizer = entry.cls(
        [
            {"params": [("matrix", params["matrix"])], "lr": 1e-2, "foreach": False},
            {"params": [("vector", params["vector"])], "lr": 1e-3, "foreach": True, "weight_decay": 0.3},
        ],
        **variant.options,
    )
    optimizer.add_param_group({"params": [("conv", params["conv"])], "lr": 1e-4, "maximize": True})
    train(optimizer, params, range(1, 4))
    expected = (
        ("matrix", {"lr": 1e-2}),
        ("vector", {"lr": 1e-3, "weight_decay": 0.3}),
        ("conv", {"lr": 1e-4, "maximize": True}),
    )
    for name, numbers in expected:
        alone = parameters((name,))
        single = entry.cls([{"params": list(alone.items()), **numbers}], **variant.options)
        train(single, alone, range(1, 4))
        torch.testing.assert_close(params[name], alone[name], rtol=1e-6, atol=1e-8)


@every_kind_of_variant
def test_a_parameter_without_entries_is_harmless(entry, variant):
    mine, other = parameters(("matrix",)), parameters(("matrix",))
    empty = torch.nn.Parameter(torch.zeros(0, 3))
    ours = build(entry, variant, {**mine, "empty": empty})
    theirs = build(entry, variant, other)
    for t in range(1, 3):
        feed(mine, t)
        feed(other, t)
        empty.grad = torch.zeros(0, 3)
        ours.step()
        theirs.step()
    assert_same(values(mine), values(other))


# -- when a step is taken --------------------------------------------------------------------------------------------


# The engine leaves them out. For every name there is a test of steps with some in tests/matrix/test_matrix_steps.py.
@every_kind_of_variant
def test_a_parameter_without_gradient_stays_and_does_not_advance(entry, variant):
    params = parameters(("matrix", "vector", "conv"))
    start = values(params)
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 4), only=("matrix", "conv"))
    assert_same(params["vector"].detach(), start["vector"])
    assert not optimizer.state.get(params["vector"])
    assert optimizer.state[params["matrix"]]["step"].item() == 3
    train(optimizer, params, range(4, 6))
    assert optimizer.state[params["vector"]]["step"].item() == 2
    assert optimizer.state[params["matrix"]]["step"].item() == 5
    if variant.alone and variant.late:
        # Who joins late takes the same steps as in an optimizer of its own, bias correction included.
        late = parameters(("vector",))
        train(build(entry, variant, late), late, range(4, 6))
        assert_same(params["vector"].detach(), late["vector"].detach())


@every_kind_of_variant
def test_a_step_without_any_gradient_does_nothing(entry, variant):
    params = parameters()
    start = values(params)
    optimizer = build(entry, variant, params)
    assert optimizer.step() is None
    assert_same(values(params), start)
    assert not any(optimizer.state.values())


@every_kind_of_variant
def test_the_closure_is_called_once_with_gradients_enabled(entry, variant):
    params = parameters(("matrix", "vector"))
    optimizer = build(entry, variant, params)
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = sum((p * p).sum() for p in params.values())
        loss.backward()
        return loss

    start = values(params)
    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert loss.item() == pytest.approx(sum((p * p).sum().item() for p in start.values()))
    # The first learning rate of a warm-up may be 0, and AdaShift waits for ten gradients.
    more = 10 if entry.name == "adashift" else 1
    for _ in range(more):
        optimizer.step(closure)
    assert len(calls) == 1 + more
    assert_moved(params, start)


@every_kind_of_variant
def test_hooks_of_torch_run(entry, variant):
    params = parameters(("matrix",))
    optimizer = build(entry, variant, params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, state_dict: {**state_dict, "note": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state_dict: {k: v for k, v in state_dict.items() if k != "note"}
    )
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    train(optimizer, params, range(1, 2))
    state_dict = optimizer.state_dict()
    assert state_dict["note"] == 1
    optimizer.load_state_dict(state_dict)
    assert seen == ["before", "after", "loaded"]


@every_kind_of_variant
def test_a_sparse_gradient_is_refused_by_name_before_anything_changed(entry, variant):
    params = parameters(("vector", "matrix", "conv"))
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3))
    feed(params, 3)
    rule = optimizer.rule_for(params["matrix"], optimizer.param_groups[0])
    if rule.sparse and not variant.options.get("weight_decay"):
        pytest.skip("takes them: test_sparse.py")
    params["matrix"].grad = params["matrix"].grad.to_sparse()
    before = copy.deepcopy((values(params), states(optimizer, params), [dict(g) for g in optimizer.param_groups]))
    with pytest.raises(TypeError, match=r"'matrix' has a sparse gradient"):
        optimizer.step()
    assert_same((values(params), states(optimizer, params)), before[:2])
    for now, then in zip(optimizer.param_groups, before[2], strict=True):
        assert_same({k: v for k, v in now.items() if k != "params"}, {k: v for k, v in then.items() if k != "params"})


def test_a_sparse_gradient_of_an_unnamed_parameter_is_refused_by_its_place():
    params = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = hfoptim.Lion([{"params": params[:1]}, {"params": params[1:]}])
    params[2].grad = torch.ones(2, 2).to_sparse()
    with pytest.raises(TypeError, match="parameter 1 of group 1"):
        optimizer.step()


# -- complex parameters ----------------------------------------------------------------------------------------------


@every_variant
def test_complex_parameters_step_like_their_real_and_imaginary_parts(entry, variant):
    mine = parameters(dtype=torch.complex64)
    optimizer = build(entry, variant, mine, **({"foreach": False} if variant.complex else {}))
    if not variant.complex:
        feed(mine, 1)
        start = values(mine)
        with pytest.raises(TypeError, match="complex"):
            optimizer.step()
        assert_same(values(mine), start)
        return
    # With the same names, for the patterns of weight decay. A view with gaps has no real view with the same layout.
    other = {name: torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for name, p in mine.items()}
    real = build(entry, variant, other, foreach=False)
    start = values(mine)
    for t in range(1, 6):
        set_lr(optimizer, t, variant.lr)
        set_lr(real, t, variant.lr)
        feed(mine, t)
        for name, param in mine.items():
            other[name].grad = torch.view_as_real(param.grad).clone()
        optimizer.step()
        real.step()
    for name, param in mine.items():
        torch.testing.assert_close(torch.view_as_real(param.detach()), other[name].detach(), rtol=1e-6, atol=1e-7)
        assert all(s.is_complex() for key, s in optimizer.state[param].items() if key != "step")
    assert_moved(mine, start)


@pytest.mark.parametrize(
    ("make", "peer"),
    [
        (
            lambda p: hfoptim.Adam(p, lr=1e-2, eps=1e-8, betas=(0.9, 0.999), weight_decay=0.1),
            ("Adam", {"eps": 1e-8, "weight_decay": 0.1}),
        ),
        (
            lambda p: hfoptim.Adam(p, lr=1e-2, eps=1e-8, betas=(0.9, 0.999), weight_decay=0.1, decouple_wd=True),
            ("AdamW", {"eps": 1e-8, "weight_decay": 0.1}),
        ),
        (
            lambda p: hfoptim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
            ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        ),
    ],
    ids=["adam", "adam_decoupled", "sgd"],
)
def test_complex_parameters_follow_torch(make, peer):
    mine, other = parameters(dtype=torch.complex128), parameters(dtype=torch.complex128)
    start = values(mine)
    ours = make(list(mine.items()))
    theirs = getattr(torch.optim, peer[0])(list(other.values()), lr=1e-2, foreach=False, **peer[1])
    rows = ([], [])
    for t in range(1, 21):
        feed(mine, t, follow=other)
        feed(other, t)
        ours.step()
        theirs.step()
        rows[0].append(torch.view_as_real(flattened(mine)).flatten())
        rows[1].append(torch.view_as_real(flattened(other)).flatten())
    assert_follows(*rows, {n: torch.view_as_real(p) for n, p in start.items()}, 1e-10)
    assert_moved(other, start)


# -- copies and resuming ---------------------------------------------------------------------------------------------


@every_kind_of_variant
def test_state_dict_round_trip_is_exact(entry, variant):
    for dtype in (torch.float32, torch.bfloat16):
        params, other = parameters(dtype=dtype), parameters(dtype=dtype)
        optimizer, fresh = build(entry, variant, params), build(entry, variant, other)
        train(optimizer, params, range(1, 4), variant.lr)
        saved = optimizer.state_dict()
        assert len(saved["state"]) == len(params)
        assert_same(through_disk(saved), saved)
        fresh.load_state_dict(through_disk(saved))
        assert_same(fresh.state_dict(), saved)
        assert_same(states(fresh, other), states(optimizer, params))


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=str)
@every_variant
def test_resuming_equals_going_on_bit_for_bit(entry, variant, dtype):
    whole = parameters(dtype=dtype)
    optimizer = build(entry, variant, whole)
    # One parameter without a gradient in the first half: the step counts differ at the checkpoint.
    present = [name for name in whole if name != "vector"]
    train(optimizer, whole, range(1, 5), variant.lr, only=present)
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    train(optimizer, whole, range(5, 9), variant.lr)

    resumed = parameters(dtype=dtype, seed=1)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again = build(entry, variant, resumed)
    again.load_state_dict(saved)
    train(again, resumed, range(5, 9), variant.lr)
    assert_same_run(again, resumed, optimizer, whole)


@every_kind_of_variant_with_lr
def test_resuming_with_a_schedule_repeats_the_learning_rates(entry, variant):
    def start():
        params = parameters(("matrix", "vector"))
        optimizer = build(entry, variant, params)
        schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=10)
        return params, optimizer, schedule

    def go_on(params, optimizer, schedule, steps):
        trace = []
        for t in steps:
            trace.append([group["lr"] for group in optimizer.param_groups])
            feed(params, t)
            optimizer.step()
            schedule.step()
        return trace

    whole = start()
    trace = go_on(*whole, range(1, 11))
    first = start()
    go_on(*first, range(1, 6))
    second = start()
    with torch.no_grad():
        for name, param in second[0].items():
            param.copy_(first[0][name])
    second[1].load_state_dict(through_disk(first[1].state_dict()))
    second[2].load_state_dict(through_disk(first[2].state_dict()))
    assert go_on(*second, range(6, 11)) == trace[5:]
    assert_same_run(second[1], second[0], whole[1], whole[0])


@every_kind_of_variant
def test_deepcopy_goes_on_alike_and_apart(entry, variant):
    # Copies of a tensor with gaps have none, and sum in another order.
    params = parameters([name for name in SMALL if name != "gaps"])
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3))
    other, twin = copy.deepcopy((params, optimizer))
    assert twin.param_groups[0]["params"][0] is next(iter(other.values()))
    train(optimizer, params, range(3, 5))
    assert not torch.equal(params["matrix"], other["matrix"])
    train(twin, other, range(3, 5))
    assert_same_run(twin, other, optimizer, params)


@every_kind_of_variant
def test_pickle_goes_on_alike(entry, variant):
    # Copies of a tensor with gaps have none, and sum in another order.
    params = parameters([name for name in SMALL if name != "gaps"])
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3))
    other, twin = pickle.loads(pickle.dumps((params, optimizer)))
    # Gradients of leaf parameters are not pickled, state is.
    train(optimizer, params, range(3, 5))
    train(twin, other, range(3, 5))
    assert_same_run(twin, other, optimizer, params)
    # What was unpickled can be saved, loaded and extended as before.
    twin.load_state_dict(through_disk(optimizer.state_dict()))
    optimizer.load_state_dict(through_disk(twin.state_dict()))
    twin.add_param_group({"params": [("more", torch.nn.Parameter(torch.ones(3)))]})


@every_kind_of_variant_with_lr
def test_a_loaded_learning_rate_is_used_and_a_changed_one_obeyed(entry, variant):
    params = parameters(dtype=torch.float64)
    optimizer = build(entry, variant, params)
    train(optimizer, params, range(1, 3), lr=variant.lr)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * variant.lr
        if "weight_decay" in group:
            group["weight_decay"] = 0.0  # AdamW's, after the update, is not linear in lr
    saved, weights = through_disk(optimizer.state_dict()), values(params)

    def resumed(lr):
        other = parameters(dtype=torch.float64)
        with torch.no_grad():
            for name, param in other.items():
                param.copy_(weights[name])
        again = build(entry, variant, other)
        again.load_state_dict(through_disk(saved))
        if lr is not None:
            for group in again.param_groups:
                group["lr"] = lr
        feed(other, 3)
        again.step()
        return other

    train(optimizer, params, range(3, 4))
    assert_same(values(resumed(None)), values(params))
    if not variant.linear:
        # Caution may hold the one entry of a parameter back.
        moved = {name: param for name, param in params.items() if not torch.equal(param, weights[name])}
        assert {"vector", "matrix"} <= set(moved)
        still = resumed(0.0)
        assert all(not torch.equal(still[name], param) for name, param in moved.items())
        return
    assert_same(values(resumed(0.0)), weights)
    for name, param in resumed(0.25 * variant.lr).items():
        # Half the learning rate makes half the step.
        half, full = param.detach() - weights[name], params[name].detach() - weights[name]
        torch.testing.assert_close(2 * half, full, rtol=1e-9, atol=1e-13)
