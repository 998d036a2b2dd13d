"""When a step moves what, and in which surroundings, over every name."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, values
from matrix_rows import every_kind_of_row, every_row, parameters, quartic
from torch import nn

INNER = ("body.weight", "body.bias")


def states(optimizer):
    return [dict(state) for state in optimizer.state.values() if state]


@every_kind_of_row
def test_a_closure_gets_gradients_enabled_and_its_loss_comes_back(row):
    params = parameters()
    optimizer, enabled, losses = row.make(params), [], []

    def closure():
        enabled.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        losses.append(quartic(params))
        row.backward(losses[-1])
        return losses[-1]

    with torch.no_grad():
        result = optimizer.step(closure)
    assert result is losses[0]
    assert all(enabled)
    assert row.closure or len(enabled) == 1


@every_kind_of_row
def test_frozen_parameters_stay(row):
    params = {name: param.requires_grad_(False) for name, param in parameters().items()}
    start = values(params)
    optimizer = row.make(params)
    result = optimizer.step(lambda: torch.tensor([1.0]))
    assert result.item() == 1.0
    assert_same(values(params), start)


@every_kind_of_row
def test_a_step_without_gradients_is_none(row):
    params = parameters()
    start = values(params)
    optimizer = row.make(params)
    for _ in range(2):
        optimizer.step()
    assert_same(values(params), start)
    assert not states(optimizer)


@every_kind_of_row
def test_a_parameter_without_a_gradient_stays_beside_others(row):
    params = parameters()
    start = values(params)
    optimizer = row.make(params, lr=row.lr)
    row.advance(optimizer, params, 2, lambda p: quartic({"body.weight": p["body.weight"]}))
    assert_same(params["body.bias"].detach(), start["body.bias"])
    assert not torch.equal(params["body.weight"], start["body.weight"])
    row.advance(optimizer, params, 2)
    assert not torch.equal(params["body.bias"], start["body.bias"])


@every_kind_of_row
def test_gradients_of_zero_move_nothing(row):
    params = parameters()
    start = values(params)
    optimizer = row.make(params, lr=row.lr, **({"weight_decay": 0.0} if "weight_decay" in row.options else {}))
    row.advance(optimizer, params, 2, lambda p: 0.0 * quartic(p))
    assert_same(values(params), start)


@every_kind_of_row
def test_a_parameter_without_entries_goes_along(row):
    params = parameters()
    both = {**params, "body.empty": nn.Parameter(torch.zeros(0))}
    optimizer = row.make(both, lr=row.lr)
    row.advance(optimizer, both, 2)
    alone = parameters()
    row.advance(row.make(alone, lr=row.lr), alone, 2)
    assert_same(values(params), values(alone))


@every_row
def test_foreach_is_the_loop_also_where_parameters_freeze_and_gradients_are_missing(row):
    runs = []
    for foreach in (False, True):
        params = {**parameters(torch.float64), "scale": nn.Parameter(torch.tensor(0.7, dtype=torch.float64))}
        optimizer = row.make(params, lr=row.lr, foreach=foreach)
        for t in range(6):
            params["body.bias"].requires_grad_(t not in (2, 3))
            used = INNER if t == 1 else tuple(params)
            row.advance(optimizer, params, 1, lambda p, used=used: quartic({name: p[name] for name in used}))
        runs.append((values(params), states(optimizer)))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-10, atol=1e-12)


@every_row
def test_parameters_of_several_dtypes_step_alike_with_and_without_foreach(row):
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    runs = []
    for foreach in (False, True):
        params = {f"{dtype}.weight": parameters(dtype)["body.weight"] for dtype in dtypes}
        optimizer = row.make(params, lr=row.lr, foreach=foreach)
        row.advance(optimizer, params, 3, lambda p: quartic(p).float())
        runs.append((values(params), states(optimizer)))
    for dtype, param in zip(dtypes, runs[0][0].values(), strict=True):
        assert param.dtype is dtype
        # A few small steps of the others may all be in the compensation.
        assert dtype.itemsize == 2 or not torch.equal(param, parameters(dtype)["body.weight"])
    torch.testing.assert_close(runs[0], runs[1], rtol=2e-2, atol=1e-3)


@every_row
def test_complex_parameters_step_like_pairs_of_reals(row):
    mine = parameters(torch.complex128, shapes={"body.weight": (3, 2), "body.bias": (3,)})
    other = {name: nn.Parameter(torch.view_as_real(p.detach()).clone()) for name, p in mine.items()}
    mine["real"], other["real"] = (parameters(torch.float64)["body.bias"] for _ in range(2))
    ours, theirs = row.make(mine, lr=row.lr), row.make(other, lr=row.lr)

    def of_reals(params):
        return quartic({n: p if n == "real" else torch.view_as_complex(p) for n, p in params.items()})

    row.advance(ours, mine, 3)
    row.advance(theirs, other, 3, of_reals)
    assert not torch.equal(mine["body.bias"], parameters(torch.complex128)["body.bias"])
    for name in mine:
        real = torch.view_as_real(mine[name].detach()) if mine[name].is_complex() else mine[name].detach()
        torch.testing.assert_close(real, other[name].detach(), rtol=1e-9, atol=1e-12)


@every_kind_of_row
def test_a_sparse_gradient_is_refused_by_name_and_changes_nothing(row):
    params = parameters()
    optimizer = row.make(params)
    row.advance(optimizer, params)
    start, before = values(params), states(optimizer)

    def sparse():
        params["body.weight"].grad = params["body.weight"].grad.to_sparse()

    with pytest.raises(TypeError, match=r"'body\.weight' has a sparse gradient"):
        row.advance(optimizer, params, after=sparse)
    assert_same(values(params), start)
    assert_same(states(optimizer), before)


@every_row
def test_parameters_without_memory_get_state_without_memory(row):
    params = parameters(device="meta")
    optimizer = row.make(params)
    row.advance(optimizer, params, 2)
    for state in states(optimizer):
        for name, value in state.items():
            assert value.device.type == ("cpu" if name == "step" else "meta"), name
            assert name != "step" or value.item() == 2


@every_kind_of_row
def test_parameters_of_two_devices_step_in_one_optimizer(row):
    # The device without memory stands for a second one.
    params = {**parameters(), "other.bias": parameters(device="meta")["body.bias"]}
    optimizer = row.make(params, lr=row.lr)

    def loss(params):
        backward = quartic({"other.bias": params["other.bias"]})
        row.backward(backward)
        return quartic({name: params[name] for name in INNER})

    row.advance(optimizer, params, 2, loss)
    alone = parameters()
    row.advance(row.make(alone, lr=row.lr), alone, 2)
    assert_same({name: params[name].detach() for name in alone}, values(alone))
    assert params["other.bias"].device.type == "meta"


@every_kind_of_row
def test_clipped_gradients_are_what_the_step_takes(row):
    runs = []
    for by_torch in (True, False):
        params = parameters(torch.float64)

        def clip(params=params, by_torch=by_torch):
            norm = torch.stack([p.grad.norm() for p in params.values()]).norm()
            if by_torch:
                torch.nn.utils.clip_grad_norm_(list(params.values()), 0.5)
            elif norm > 0.5:
                for param in params.values():
                    param.grad.detach().mul_(0.5 / (norm.detach() + 1e-6))

        row.advance(row.make(params, lr=row.lr), params, 3, after=clip)
        runs.append(values(params))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-12)


@every_kind_of_row
def test_a_gradient_scaler_divides_by_its_scale_and_leaves_out_what_overflows(row):
    mine, other = parameters(), parameters()
    ours, theirs = row.make(mine, lr=row.lr), row.make(other, lr=row.lr)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=100)
    for _ in range(3):
        ours.zero_grad()
        row.backward(scaler.scale(quartic(mine)))
        scaler.step(ours)
        scaler.update()
    row.advance(theirs, other, 3)
    assert_same(values(mine), values(other))
    before, held = values(mine), states(ours)
    ours.zero_grad()
    row.backward(scaler.scale(quartic(mine)))
    mine["body.bias"].grad[0] = float("inf")
    scaler.step(ours)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert_same(values(mine), before)
    assert_same(states(ours), held)


class Double:
    """float64 as the default dtype."""

    def __enter__(self):
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        torch.set_default_dtype(torch.float32)


@every_kind_of_row
def test_surroundings_do_not_change_a_step(row):
    plain = parameters()
    row.advance(row.make(plain, lr=row.lr), plain, 3)
    for around in (lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad, torch.no_grad, Double):
        params = parameters()
        row.advance(row.make(params, lr=row.lr), params, 3, around=around)
        assert_same(values(params), values(plain))
