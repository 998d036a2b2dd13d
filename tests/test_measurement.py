"""StepMeasurement and what it is made of: one step in numbers, against sums taken by hand in float64."""

from __future__ import annotations

import math

import prodigyopt
import pytest
import torch
from torch import nn

import hfoptim
from hfoptim.engine import ELEMENT, MATRIX, rule
from hfoptim.engine.backends import eager_tiled
from hfoptim.engine.codegen import native
from hfoptim.engine.report import Report
from hfoptim.training.step_metrics import (
    MEASURED,
    NonfiniteGradients,
    StepMeasurement,
    check_quantities,
    group_labels,
    lacking,
    noted_rates,
    read_groups,
)

SHAPES = [(5, 7), (), (4, 3, 2), (9,)]


def parameters(dtype=torch.float32, seed=0, shapes=SHAPES):
    made = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=made, dtype=torch.float64).to(dtype)) for shape in shapes]


def feed(params, seed):
    made = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=made, dtype=torch.float64).to(param.dtype)


NORMS = ("grad_norm", "update_rms", "update_to_weight", "trust_ratio")


def measured(optimizer, quantities=NORMS):
    measurement = StepMeasurement(optimizer, quantities)
    optimizer.step()
    return measurement.values()


def by_hand(before, after, grads):
    """(norm of the gradients, RMS of the update, update to weight) of some parameters."""

    def flat(tensors):
        return torch.cat([t.detach().double().reshape(-1) for t in tensors])

    x, moved = flat(before), flat(after) - flat(before)
    grad = flat([g for g in grads if g is not None])
    return grad.norm().item(), moved.square().mean().sqrt().item(), (moved.norm() / x.norm()).item()


def combined(groups):
    return hfoptim.CombinedOptimizer(
        [hfoptim.Lion(groups[:1], lr=0.1), torch.optim.SGD([*groups[1:]], lr=0.2, momentum=0.9)]
    )


MAKERS = {
    "ours": lambda groups: hfoptim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "ours, one kernel": lambda groups: hfoptim.Lion(groups, lr=0.1, fused=True),
    "torch's": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.1),
    "lookahead": lambda groups: hfoptim.Lookahead(hfoptim.Adan(groups, lr=0.1), k=1),
    "several": combined,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_norms_of_a_step(make, dtype):
    first, second = parameters(dtype), parameters(dtype, seed=1)
    optimizer = make([{"params": first}, {"params": second}])
    for t in range(3):
        feed(first + second, t)
        second[1].grad = None
        before = [p.detach().clone() for p in first + second]
        found = measured(optimizer)
        n = len(first)
        parts = {
            "": by_hand(before, first + second, [p.grad for p in first + second]),
            "/group_0": by_hand(before[:n], first, [p.grad for p in first]),
            "/group_1": by_hand(before[n:], second, [p.grad for p in second]),
        }
        expected = {
            f"{name}{part}": value
            for part, values in parts.items()
            for name, value in zip(("grad_norm", "update_rms", "update_to_weight"), values, strict=True)
        }
        assert found == pytest.approx(expected, rel=1e-6 if dtype is not torch.float64 else 1e-13)
        assert all(type(value) is float and value > 0 for value in found.values())


def test_one_group_needs_no_names_and_empty_groups_count_for_nothing():
    params = parameters()
    optimizer = torch.optim.SGD([{"params": params}, {"params": []}], lr=0.1)
    feed(params, 0)
    assert set(measured(optimizer)) == {"grad_norm", "update_rms", "update_to_weight"}


def test_groups_are_called_by_their_names_where_these_tell_them_apart():
    groups = [{"params": [0], "name": "head"}, {"params": []}, {"params": [0], "name": "rest"}, {"params": [0]}]
    assert group_labels(groups) == {0: "head", 2: "rest", 3: "group_3"}
    groups[2]["name"] = "head"
    assert group_labels(groups) == {0: "group_0", 2: "group_2", 3: "group_3"}


def test_only_what_was_asked_for_is_measured():
    params = parameters()
    optimizer = hfoptim.Lion(params, lr=0.1)
    feed(params, 0)
    measurement = StepMeasurement(optimizer, ["grad_norm"])
    measurement._before()
    assert not measurement._copies
    optimizer.step()
    assert set(measurement.values()) == {"grad_norm"}


def test_weights_of_zero_have_no_ratio():
    param = nn.Parameter(torch.zeros(3))
    param.grad = torch.ones(3)
    assert set(measured(torch.optim.SGD([param], lr=0.1))) == {"grad_norm", "update_rms"}


def test_complex_strided_and_sparse():
    strided = nn.Parameter(torch.randn(6, 8)[:, ::2])
    turned = nn.Parameter(torch.randn(4, 5).t())
    imaginary = nn.Parameter(torch.randn(3, 4, dtype=torch.complex64))
    params = [strided, turned, imaginary]
    for param in params:
        param.grad = torch.randn_like(param)
    before = [p.detach().clone() for p in params]
    found = measured(torch.optim.SGD(params, lr=0.1))

    def real(tensors):
        return [torch.view_as_real(t.detach()) if t.is_complex() else t for t in tensors]

    want = by_hand(real(before), real(params), real([p.grad for p in params]))
    assert (found["grad_norm"], found["update_to_weight"]) == pytest.approx((want[0], want[2]), rel=1e-6)
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 1, 4])).sum().backward()
    found = measured(torch.optim.SparseAdam(embedding.parameters()), ["grad_norm"])
    assert found["grad_norm"] == pytest.approx(math.sqrt(3 * 4 + 3))


def test_large_tensors_are_summed_exactly():
    # torch 2.13's own norm, in float32, is off by 6e-4 here.
    param = nn.Parameter(torch.randn(1 << 24, generator=torch.Generator().manual_seed(0)))
    param.grad = torch.randn(1 << 24, generator=torch.Generator().manual_seed(1))
    exact = torch.linalg.vector_norm(param.grad, dtype=torch.float64).item()
    weight = torch.linalg.vector_norm(param.detach(), dtype=torch.float64).item()
    found = measured(torch.optim.SGD([param], lr=0.5))
    assert found["grad_norm"] == pytest.approx(exact, rel=1e-7)
    assert found["update_to_weight"] == pytest.approx(0.5 * exact / weight, rel=1e-6)


# -- it leaves everything as it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("cls", [hfoptim.Lamb, hfoptim.Lars, hfoptim.Prodigy, hfoptim.Adafactor])
def test_a_measured_step_is_the_step(cls, options):
    watched, alone = parameters(), parameters()
    ours, other = cls(watched, **options), cls(alone, **options)
    feed(watched, 9), feed(alone, 9)
    ours.step(), other.step()  # kernels are there
    compiled = native.compiled()
    for t in range(3):
        feed(watched, t), feed(alone, t)
        measured(ours)
        other.step()
    assert native.compiled() == compiled
    assert all(torch.equal(a, b) for a, b in zip(watched, alone, strict=True))
    for a, b in zip(watched, alone, strict=True):
        assert all(torch.equal(ours.state[a][key], other.state[b][key]) for key in other.state[b])
    assert ours.report is None
    assert not ours._optimizer_step_pre_hooks
    assert not ours._optimizer_step_post_hooks
    assert ours._last_step is not None  # the steps after it are found again


def test_one_step_is_measured_and_its_copies_go():
    params = parameters()
    optimizer = hfoptim.Lion(params, lr=0.1)
    feed(params, 0)
    measurement = StepMeasurement(optimizer, NORMS)
    optimizer.step()
    assert not measurement._copies
    first = measurement.values()
    feed(params, 1)
    optimizer.step()
    assert measurement.values() == first


def test_a_step_that_is_not_taken_has_no_numbers():
    params = parameters()
    optimizer = hfoptim.Lamb(params)
    measurement = StepMeasurement(optimizer, NORMS)
    measurement.close()
    assert measurement.values() == {}
    feed(params, 0)
    optimizer.step()
    assert measurement.values() == {}


@pytest.mark.parametrize("cls", [hfoptim.Lamb, torch.optim.AdamW])
def test_scaled_gradients_are_measured_as_the_step_sees_them(cls):
    params = parameters()
    optimizer, scaler = cls(params, lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for overflow in (False, True):
        optimizer.zero_grad()
        scaler.scale(sum(param.square().sum() for param in params)).backward()
        if overflow:
            params[0].grad[0, 0] = math.inf
        expected = math.sqrt(sum((2 * param.detach().double()).square().sum().item() for param in params))
        measurement = StepMeasurement(optimizer, ["grad_norm", "trust_ratio"])
        scaler.step(optimizer)
        scaler.update()
        measurement.close()
        if overflow:
            assert measurement.values() == {}  # the step was left out
        else:
            assert measurement.values()["grad_norm"] == pytest.approx(expected, rel=1e-6)
    assert not optimizer._optimizer_step_pre_hooks


# -- trust ratios -----------------------------------------------------------------------------------------------------


def ratios_of_lamb(before, grads, group, moments):
    """|p| / |u| of each tensor, from LAMB's formulas, in float64; moves `moments` on."""
    total = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    clip = max(1.0, total / group["max_grad_norm"])
    moments["t"] += 1
    found, t, (beta1, beta2) = [], moments["t"], group["betas"]
    for index, (param, grad) in enumerate(zip(before, grads, strict=True)):
        grad = grad.double() / clip
        m, v = moments.get(index, (torch.zeros_like(grad), torch.zeros_like(grad)))
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        moments[index] = m, v
        update = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        update = update + group["weight_decay"] * param.double()
        found.append((param.double().norm() / update.norm()).item())
    return found


RUNNERS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "compiled": {"fused": True},
    "pieces": {"foreach": False},
}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("runner", RUNNERS)
def test_trust_ratios_of_lamb(runner, clip, monkeypatch):
    if runner == "pieces":
        monkeypatch.setattr(eager_tiled, "LARGE", 8)
        monkeypatch.setattr(eager_tiled, "PIECE", 3)
    params, plain = parameters(torch.float64), parameters(torch.float64, seed=1)
    params[0].data.mul_(3.0)  # for a ratio above 1
    groups = [{"params": params}, {"params": plain, "weight_decay": 0.0}]  # without decay there is no ratio
    optimizer = hfoptim.Lamb(groups, lr=0.1, weight_decay=0.3, trust_clip=clip, **RUNNERS[runner])
    moments = {"t": 0}
    for t in range(4):
        feed(params + plain, t)
        before, group = [p.detach().clone() for p in params], optimizer.param_groups[0]
        found = measured(optimizer, ["trust_ratio"])
        grads = [p.grad for p in params + plain]
        ratios = ratios_of_lamb([*before, *(p.detach() for p in plain)], grads, group, moments)[: len(params)]
        assert min(ratios) < 1.0 < max(ratios)
        ratios = [min(ratio, 1.0) for ratio in ratios] if clip else ratios
        expected = {"min": min(ratios), "mean": sum(ratios) / len(ratios), "max": max(ratios)}
        assert found == pytest.approx({f"trust_ratio_{name}": value for name, value in expected.items()}, rel=1e-9)


@pytest.mark.parametrize("runner", RUNNERS)
def test_trust_ratios_of_lars(runner, monkeypatch):
    if runner == "pieces":
        monkeypatch.setattr(eager_tiled, "LARGE", 8)
        monkeypatch.setattr(eager_tiled, "PIECE", 3)
    params = parameters(torch.float64)
    options = {"weight_decay": 0.1, "trust_coeff": 0.02, "eps": 1e-8, "momentum": 0.9}
    for clip in (False, True):
        optimizer = hfoptim.Lars(params, lr=0.005, trust_clip=clip, **options, **RUNNERS[runner])
        feed(params, 3)
        ratios = []
        for param in params:
            weight, grad = param.detach().norm().item(), param.grad.norm().item()
            ratio = 0.02 * weight / (grad + 0.1 * weight + 1e-8)
            ratios.append(min(ratio / 0.005, 1.0) if clip else ratio)
        found = measured(optimizer, ["trust_ratio"])
        assert found == pytest.approx(
            {
                "trust_ratio_min": min(ratios),
                "trust_ratio_mean": sum(ratios) / len(ratios),
                "trust_ratio_max": max(ratios),
            },
            rel=1e-9,
        )


@pytest.mark.parametrize("state", ["bfloat16", "8bit"])
def test_trust_ratios_of_kept_state_and_bfloat16_parameters(state):
    shapes = [(70, 130), (5, 7)]
    params, exact = parameters(torch.bfloat16, shapes=shapes), parameters(torch.bfloat16, shapes=shapes)
    optimizer = hfoptim.Lamb(params, lr=0.01, weight_decay=0.3, state_dtype=state)
    reference = hfoptim.Lamb(exact, lr=0.01, weight_decay=0.3)
    for t in range(3):
        feed(params, t), feed(exact, t)
        found, expected = (measured(each, ["trust_ratio"]) for each in (optimizer, reference))
        assert found == pytest.approx(expected, rel=0.02)
    assert found != expected


def test_where_a_norm_is_zero_the_ratio_is_one():
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))]
    params[0].grad, params[1].grad = torch.ones(3), torch.full((3,), 2.0)
    found = measured(hfoptim.Lamb(params, betas=(0.0, 0.0), eps=0.0, weight_decay=1.0), ["trust_ratio"])
    assert found["trust_ratio_min"] == pytest.approx(0.5)  # |1| / |1 + 1|
    assert found["trust_ratio_max"] == 1.0


def test_a_rule_of_another_scope_has_no_report():
    for scope in (ELEMENT, MATRIX):
        with pytest.raises(TypeError, match=f"scope {scope.name} cannot have"):
            rule(scope, report=lambda grad, param, h: {})(lambda grad, param, h: (grad,))


def test_reports_name_what_they_like():
    class Signed(hfoptim.engine.RuleOptimizer):
        rule = rule(hfoptim.engine.TENSOR, report=lambda grad, param, h: {"largest": grad.abs().amax()})(
            lambda grad, param, h: (grad.sign(),)
        )

        lr: float = hfoptim.engine.hyper(0.1, "learning rate")
        weight_decay: float = hfoptim.engine.hyper(0.0, "weight decay")

    params = parameters()
    optimizer = Signed(params)
    feed(params, 0)
    optimizer.report = report = Report()
    optimizer.step()
    assert torch.cat(report.values["largest"]).tolist() == [p.grad.abs().max().item() for p in params]


# -- what groups hold -------------------------------------------------------------------------------------------------


def read(optimizer, *quantities):
    return read_groups(optimizer, noted_rates(optimizer), quantities)


@pytest.mark.parametrize("make", [hfoptim.Prodigy, prodigyopt.Prodigy])
def test_the_estimate_of_prodigy(make):
    params = parameters()
    optimizer = make([{"params": params[:2]}, {"params": params[2:]}], lr=0.5)
    feed(params, 0)
    for _ in range(5):
        optimizer.step()
    d = float(optimizer.param_groups[0]["d"])
    assert d > 1e-6
    assert read(optimizer, "d") == {"d": d, "d_lr/group_0": 0.5 * d, "d_lr/group_1": 0.5 * d}


def test_estimates_that_differ_are_told_apart():
    params = parameters()
    optimizer = hfoptim.CombinedOptimizer(
        [hfoptim.Prodigy(params[:2], lr=1.0, d0=1e-5), hfoptim.Prodigy(params[2:], lr=1.0)]
    )
    found = read(optimizer, "d")
    assert found == {"d/group_0": 1e-5, "d/group_1": 1e-6, "d_lr/group_0": 1e-5, "d_lr/group_1": 1e-6}


def test_the_learning_rate_is_the_one_applied():
    params = parameters()
    free = hfoptim.AdamWScheduleFree(params, lr=0.4, warmup_steps=4)
    feed(params, 0)
    free.step()
    assert read(free, "lr") == {"lr": pytest.approx(0.1)}
    sets_it = hfoptim.Adafactor([{"params": params[:1]}, {"params": params[3:]}])
    assert read(sets_it, "lr") == {}
    feed(params, 0)
    scale = params[0].detach().square().mean().sqrt().item()
    sets_it.step()
    assert read(sets_it, "lr")["lr/group_0"] == pytest.approx(1e-2 * scale)
    capturable = torch.optim.SGD(params, lr=torch.tensor(0.25))
    noted = noted_rates(capturable)
    capturable.param_groups[0]["lr"].fill_(1.0)  # as schedules do
    assert read_groups(capturable, noted, ["lr"]) == {"lr": 0.25}


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_names_of_quantities_are_checked():
    known = ("lr", "grad_norm")
    assert check_quantities("log", True, known) == known
    assert check_quantities("log", "lr", known) == ("lr",)
    assert check_quantities("log", ["grad_norm", "lr", "lr"], known) == known
    with pytest.raises(ValueError, match="log: there is no quantity 'grad-norm'; did you mean 'grad_norm'"):
        check_quantities("log", ["grad-norm"], known)
    with pytest.raises(ValueError, match="asks for nothing; give True, or some of lr, grad_norm"):
        check_quantities("log", [], known)
    for wrong in (3, {"lr": True}, None):
        with pytest.raises(TypeError, match="expected True, a name or several names"):
            check_quantities("log", wrong, known)
    with pytest.raises(TypeError, match="log holds 3"):
        check_quantities("log", ["lr", 3], known)


def test_what_an_optimizer_lacks_is_said():
    params = parameters()
    quantities = ("lr", *MEASURED, "d")
    assert set(lacking(torch.optim.AdamW(params), quantities)) == {"trust_ratio", "d"}
    assert set(lacking(hfoptim.Lamb(params, weight_decay=0.0), quantities)) == {"trust_ratio", "d"}
    assert set(lacking(hfoptim.Lamb(params), quantities)) == {"d"}
    assert set(lacking(hfoptim.Prodigy(params), quantities)) == {"trust_ratio"}
    assert set(lacking(hfoptim.Lion(params, gradient_release=True), quantities)) == {*MEASURED, "d"}
    params[0]._fsdp_flattened = True
    reasons = lacking(hfoptim.Lion(params), quantities)
    assert set(reasons) == {*MEASURED, "d"}
    assert "FSDP1" in reasons["grad_norm"]


# -- updates that change nothing, gradients that are no numbers ---------------------------------------------------


def test_updates_too_small_for_bfloat16_are_counted():
    def group(scale):
        param = nn.Parameter(torch.full((64,), scale, dtype=torch.bfloat16))
        param.grad = torch.ones_like(param)
        param.grad[:16] = 0.0
        return {"params": [param]}

    # An update of 1e-3 moves weights of 0.1, and is lost in weights of 4.
    optimizer = torch.optim.SGD([group(0.1), group(4.0)], lr=1e-3)
    found = measured(optimizer, ["zero_updates", "lost_updates"])
    assert found == {
        **{"zero_updates": 80 / 128, "zero_updates/group_0": 0.25, "zero_updates/group_1": 1.0},
        **{"lost_updates": 0.5, "lost_updates/group_0": 0.0, "lost_updates/group_1": 1.0},
    }
    idle = torch.optim.SGD([nn.Parameter(torch.zeros(4))], lr=1.0)
    assert measured(idle, ["zero_updates", "lost_updates"]) == {"zero_updates": 1.0}


def test_kahan_and_master_weights_keep_what_the_count_calls_lost():
    """The count is of the weights; what is left over moves them in a later step."""
    shares = []
    for options in ({"kahan_sum": False}, {"kahan_sum": True}, {"master_weights": 16}):
        param = nn.Parameter(torch.full((64,), 1.0, dtype=torch.bfloat16))
        optimizer = hfoptim.SGD([param], lr=1e-3, momentum=0.0, **options)
        for _ in range(8):
            param.grad = torch.ones_like(param)
            share = measured(optimizer, ["lost_updates"])["lost_updates"]
        shares.append((share, bool((param == 1.0).all())))
    assert shares[0] == (1.0, True)
    assert [moved for _, moved in shares[1:]] == [False, False]


def test_parameters_with_gradients_that_are_no_numbers():
    params = parameters()
    optimizer = torch.optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    watch = NonfiniteGradients(optimizer, {id(params[0]): "the first"})
    assert watch.take() == []
    for seed, (bad, value) in enumerate([(None, 0.0), (0, math.nan), (2, -math.inf), (None, 0.0)]):
        feed(params, seed)
        if bad is not None:
            params[bad].grad.view(-1)[0] = value
        watch.note()
    assert watch.take() == ["the first", "parameter 1 of group 1"]
    feed(params, 0)
    params[1].grad = None
    params[0].grad *= 1e38  # large, and finite
    watch.note()
    assert watch.take() == []
