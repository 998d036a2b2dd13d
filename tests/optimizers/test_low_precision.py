"""bfloat16 and float16 parameters: stepped in float32, and what rounding takes is kept (Kahan)."""

from __future__ import annotations

import pytest
import torch
from harness import assert_same, feed, optimizer_of, parameters, train, values
from tiers import every_entry, every_kind_of_entry

import hfoptim
from hfoptim.engine import ELEMENT, TENSOR, clone, rule, zeros
from hfoptim.engine.codegen import build
from hfoptim.engine.rule import scalar

# Both are rounded in the same way, to fewer or to more digits.
LOW = [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
every_low_dtype = pytest.mark.parametrize("dtype", LOW, ids=str)
LAYOUTS = ("vector", "matrix", "conv", "transposed")
# Of a run of many steps.
FEW, STEPS = ("vector", "matrix"), 200


def run(entry, dtype, **options):
    """200 steps. The gradients do not depend on where the parameters have come."""
    params = parameters(FEW, dtype)
    optimizer = entry.cls(list(params.items()), **entry.small_steps, **options)
    train(optimizer, params, range(1, STEPS + 1), follow=values(params))
    return params, optimizer


def reference(entry, dtype):
    """The same in float32, on the same gradients."""
    params = {name: torch.nn.Parameter(p.detach().float()) for name, p in parameters(FEW, dtype).items()}
    low = parameters(FEW, dtype)
    optimizer = entry.cls(list(params.items()), **entry.small_steps)
    for t in range(1, STEPS + 1):
        feed(low, t)  # they stay where they are
        for name, param in params.items():
            param.grad = low[name].grad.float()
        optimizer.step()
    return params, {name: param.detach().float() for name, param in low.items()}


@every_low_dtype
@every_kind_of_entry
def test_kahan_summation_keeps_what_rounding_takes(entry, dtype):
    exact, start = reference(entry, dtype)
    kept, optimizer = run(entry, dtype)
    plain, _ = run(entry, dtype, kahan_sum=False)
    for name, param in exact.items():
        want = param.detach()
        moved = (want - start[name]).abs().mean()
        assert moved > 1e-4, "the reference did not move"
        compensation = optimizer.state[kept[name]]["kahan_comp"].float()
        with_rest = (kept[name].detach().float() + compensation - want).abs().mean()
        without = (plain[name].detach().float() - want).abs().mean()
        # The sum of parameter and compensation follows float32, as far as a compensation of so few digits can; without
        # it most steps are lost.
        assert with_rest < 0.08 * moved, name
        assert with_rest < 0.1 * without, name
        # And the parameter itself is never further away than one rounding.
        spacing = torch.finfo(dtype).eps * want.abs() + torch.finfo(dtype).tiny
        assert ((kept[name].detach().float() - want).abs() <= spacing).all(), name


@every_low_dtype
@every_kind_of_entry
def test_kahan_sum_may_be_switched_off_and_on_between_steps(entry, dtype):
    params = parameters(LAYOUTS, dtype)
    optimizer = entry.cls(list(params.items()), kahan_sum=False, **entry.small_steps)
    train(optimizer, params, range(1, 3))
    assert not any("kahan_comp" in state for state in optimizer.state.values())
    for group in optimizer.param_groups:
        group["kahan_sum"] = True
    train(optimizer, params, range(3, 30))
    assert all(state["kahan_comp"].abs().max() > 0 for state in optimizer.state.values())


@every_kind_of_entry
def test_kahan_sum_changes_nothing_for_float32(entry):
    plain, kept = parameters(LAYOUTS), parameters(LAYOUTS)
    for params, option in ((plain, False), (kept, True)):
        optimizer = entry.cls(list(params.items()), kahan_sum=option, **entry.small_steps)
        train(optimizer, params, range(1, 4))
        assert not any("kahan_comp" in state for state in optimizer.state.values())
    assert_same(values(kept), values(plain))


@every_low_dtype
@every_entry
def test_a_step_is_computed_in_float32(entry, dtype):
    # Two steps from the same values: the low-precision parameter is the float32 result, rounded once.
    low = parameters(LAYOUTS, dtype)
    high = {name: torch.nn.Parameter(p.detach().float()) for name, p in low.items()}
    options = {k: v for k, v in entry.small_steps.items() if k not in ("lr", "learning_rate")}
    options["learning_rate" if "learning_rate" in entry.small_steps else "lr"] = 1e-2
    ours = entry.cls(list(low.items()), kahan_sum=False, **options)
    theirs = entry.cls(list(high.items()), **options)
    feed(low, 1)
    for name, param in high.items():
        param.grad = low[name].grad.float()
    ours.step()
    theirs.step()
    for name, param in low.items():
        assert_same(param.detach(), high[name].detach().to(dtype), name)
        for key, value in theirs.state[high[name]].items():
            assert_same(ours.state[param][key], value, f"{name}.{key}")


# -- rules that compare weights with earlier ones --------------------------------------------------------------------


def by_kernels_or(name):
    marks = [pytest.mark.skipif(build.missing() is not None, reason=f"needs {build.missing()}")]
    return pytest.param(name, marks=marks if name == "fused" else [])


@rule(ELEMENT, exact_weights=True, start=clone, total=zeros)
def from_the_start(grad, param, start, total, h):
    """The weight is made anew of where it began and of all gradients."""
    total = total + grad * 1e-4
    return param - (start - total), None, total


@rule(TENSOR, exact_weights=True, start=clone, way=scalar)
def by_the_way(grad, param, start, way, h):
    """The further it has come, the longer the step."""
    gone = param - start
    way = torch.maximum(way, (gone * gone).sum().sqrt())
    return grad * (way * 0.01 + 1e-5), None, way


@every_low_dtype
@pytest.mark.parametrize("runner", ["loop", "foreach", by_kernels_or("fused")])
@pytest.mark.parametrize("chosen", [from_the_start, by_the_way], ids=lambda r: r.name)
def test_a_rule_that_compares_weights_reads_them_with_what_rounding_took(chosen, runner, dtype):
    options = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}[runner]
    low = parameters(LAYOUTS, dtype)
    high = {name: torch.nn.Parameter(p.detach().float()) for name, p in low.items()}
    start = values(high)
    ours, theirs = (optimizer_of(chosen)(list(p.items()), lr=1.0, **o) for p, o in ((low, options), (high, {})))
    for t in range(1, 31):
        feed(low, t, follow=parameters(LAYOUTS, dtype))
        for name, param in high.items():
            param.grad = low[name].grad.float()
        ours.step()
        theirs.step()
    for name, param in high.items():
        moved = (param.detach() - start[name]).abs().max()
        assert 1e-5 < moved < 0.1
        whole = low[name].detach().float() + ours.state[low[name]]["kahan_comp"].float()
        assert (whole - param.detach()).abs().max() < 0.02 * moved, name
        state = ours.state[low[name]]
        for key, value in theirs.state[high[name]].items():
            torch.testing.assert_close(state[key], value, rtol=0.02, atol=1e-7, msg=f"{name}.{key}")


@every_low_dtype
@pytest.mark.parametrize("cls", [hfoptim.Prodigy, hfoptim.DoG, hfoptim.LDoG, hfoptim.DoWG])
def test_the_first_small_steps_are_seen_by_estimates_of_a_distance(cls, dtype):
    """At their defaults these begin with steps far below a rounding, and lengthen them by how far they have come."""
    far = []
    for kind in (dtype, torch.float32):
        params = {name: torch.nn.Parameter(p.detach().to(kind)) for name, p in parameters(FEW, dtype).items()}
        start = values(params)
        optimizer = cls(list(params.items()))
        for t in range(1, 61):
            feed(start_as := parameters(FEW, dtype), t)
            for name, param in params.items():
                param.grad = start_as[name].grad.to(kind)
            optimizer.step()
        weights = {
            name: p.detach().float() + optimizer.state[p].get("kahan_comp", torch.zeros(())).float()
            for name, p in params.items()
        }
        far.append(float(sum((weights[name] - start[name].float()).square().sum() for name in params)) ** 0.5)
    ours, exact = far
    assert abs(ours - exact) < 0.1 * exact
