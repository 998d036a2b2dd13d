"""The compiled runner: the loop's numbers, one compilation, and none when a number changes."""

from __future__ import annotations

import pytest
import torch
from cases import ADAFACTOR, ADAM, ENTRIES, LION, SGD
from harness import (
    SMALL,
    assert_follows,
    assert_goes_on_like,
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
from torch._dynamo.utils import counters

from hfoptim.engine import runners
from hfoptim.engine.runners import compiled

pytestmark = pytest.mark.skipif(
    compiled.missing("cpu") is not None, reason=f"torch.compile needs {compiled.missing('cpu')}"
)

COMPILED = [
    pytest.param(entry, variant, id=f"{entry.name}-{name}")
    for entry in ENTRIES
    for name, variant in entry.variants.items()
    if variant.compiled
]
# Numbers that a user or a schedule may change between steps.
MOVING = {
    # As many of them as the optimizer has.
    "betas": [
        (0.9, 0.99, 0.999),
        (0.8, 0.9, 0.99),
        (0.5, 0.999, 0.9),
        (0.95, 0.98, 0.99),
        (0.7, 0.97, 0.98),
        (0.9, 0.95, 0.8),
    ],
    "eps": [1e-6, 1e-5, 1e-4, 2e-5, 3e-6, 1e-3],
    "weight_decay": [0.1, 0.0, 0.2, 0.3, 0.05, 0.15],
    "momentum": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
    "clip_threshold": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5],
    "alpha": [5.0, 4.0, 3.0, 2.0, 1.0, 0.0],
    "clip_exp": [0.333, 0.25, 0.5, 0.0, 1.0, 0.2],
    "lr_decay": [0.1, 0.0, 0.2, 0.3, 0.05, 0.15],
    "global_clipnorm": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "max_grad_norm": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "trust_coeff": [0.1, 0.2, 0.3, 0.15, 0.05, 0.25],
}


def graphs():
    """How many graphs torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


def build(entry, variant, params, **options):
    return entry.cls(list(params.items()), **{**variant.options, **options})


def set_numbers(optimizer, t, lr):
    set_lr(optimizer, t, lr)
    for group in optimizer.param_groups:
        for name, given in MOVING.items():
            if isinstance(group.get(name), (float, tuple)) and not (name == "eps" and isinstance(group[name], tuple)):
                value = given[t % len(given)]
                group[name] = value[: len(group[name])] if isinstance(value, tuple) else value


@pytest.mark.parametrize(("entry", "variant"), COMPILED)
def test_equals_the_loop_and_compiles_once_whatever_number_changes(entry, variant):
    mine, other = parameters(variant.layouts), parameters(variant.layouts)
    start = values(mine)
    first_kernels, first_graphs = compiled.compilations(), graphs()
    fused, loop = build(entry, variant, mine, fused=True), build(entry, variant, other, foreach=False)
    rows = ([], [])
    for t in range(1, 9):
        if t == 3:
            kernels, traced = compiled.compilations(), graphs()
            assert kernels > 0
        for optimizer, params, row in zip((fused, loop), (mine, other), rows, strict=True):
            set_numbers(optimizer, t, variant.lr)
            feed(params, t, follow=other)
            before = {name: (param.grad.clone(), param.grad._version) for name, param in params.items()}
            with torch._dynamo.config.patch(error_on_recompile=t > 2):
                optimizer.step()
            for name, (grad, version) in before.items():
                assert torch.equal(params[name].grad, grad), name
                assert params[name].grad._version == version, name
            row.append(flattened(params))
    assert_follows(*rows, start, 1e-5)
    assert_moved(other, start)
    assert (compiled.compilations(), graphs()) == (kernels, traced), "compiled again after the second step"
    for name in mine:
        ours, theirs = fused.state[mine[name]], loop.state[other[name]]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype
            torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6 * float(value.abs().max()))
    assert traced - first_graphs == kernels - first_kernels, "a kernel was compiled more than once"


@pytest.mark.parametrize(("entry", "variant"), [c for c in COMPILED if "conv" in c.values[1].layouts])
def test_other_shapes_compile_nothing_under_an_element_wise_rule(entry, variant):
    first = parameters(variant.layouts)
    train(build(entry, variant, first, fused=True), first, range(1, 3))
    kernels, traced = compiled.compilations(), graphs()
    shapes = ((2,), (3, 2), (97, 89), (5, 5), (2, 2), (64, 1), (30000,), (1 << 16,), (2, 2, 2, 2), (31, 3, 1, 1))
    tensors = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = entry.cls([(f"{i}", p) for i, p in enumerate(tensors)], **{**variant.options, "fused": True})
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            for param in tensors:
                param.grad = torch.full_like(param, 0.5)
            optimizer.step()
    assert all(not torch.equal(p.detach(), torch.ones_like(p)) for p in tensors)
    assert (compiled.compilations(), graphs()) == (kernels, traced)


def test_an_element_wise_rule_is_compiled_once_for_all_layouts():
    # Weight decay of 0 and a plain momentum are options of no other test: this kernel is new.
    before, graphs_before = compiled.compilations(), graphs()
    params = parameters((*SMALL, "large"))
    train(SGD.cls(list(params.items()), lr=1e-2, momentum=0.9, fused=True), params, range(1, 4))
    assert compiled.compilations() - before == 1
    assert graphs() - graphs_before == 1


@pytest.mark.parametrize(
    "layouts", [("scalar",), ("one",), ("scalar", "one"), ("vector",), ("gaps",), ("expanded",)], ids=str
)
def test_a_few_entries_take_the_same_step_and_compile_nothing(layouts):
    entry, variant = LION, LION.variants["decay"]
    usual = parameters()
    train(build(entry, variant, usual, fused=True), usual, range(1, 2))
    before = compiled.compilations(), graphs()
    mine, other = parameters(layouts), parameters(layouts)
    for params, options in ((mine, {"fused": True}), (other, {"foreach": False})):
        params["empty"] = torch.nn.Parameter(torch.zeros(0, 2))
        optimizer = build(entry, variant, params, **options)
        for t in range(1, 4):
            feed({name: params[name] for name in layouts}, t)
            params["empty"].grad = torch.zeros(0, 2)
            optimizer.step()
    for name, param in other.items():
        torch.testing.assert_close(mine[name], param, rtol=1e-6, atol=1e-7)
    assert (compiled.compilations(), graphs()) == before


def test_other_matrices_compile_nothing_under_a_factored_rule():
    entry, variant = ADAFACTOR, ADAFACTOR.variants["relative"]
    params = parameters(variant.layouts)
    train(build(entry, variant, params, fused=True), params, range(1, 3))
    kernels, traced = compiled.compilations(), graphs()
    more = parameters(("wide", "narrow", "column", "transposed", "one", "scalar"))
    train(build(entry, variant, more, fused=True), more, range(1, 4))
    assert (compiled.compilations(), graphs()) == (kernels, traced)


def test_resuming_equals_going_on_bit_for_bit():
    entry, variant = LION, LION.variants["decay"]
    whole, resumed = parameters(), parameters(seed=1)
    optimizer = build(entry, variant, whole, fused=True)
    train(optimizer, whole, range(1, 4), variant.lr)
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    train(optimizer, whole, range(4, 7), variant.lr)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again = build(entry, variant, resumed, fused=True)
    again.load_state_dict(saved)
    train(again, resumed, range(4, 7), variant.lr)
    assert_same(values(resumed), values(whole))


def test_complex_parameters_use_the_kernel_of_real_ones():
    entry, variant = LION, LION.variants["decay"]
    real = parameters()
    train(build(entry, variant, real, fused=True), real, range(1, 3))
    kernels = compiled.compilations()
    mine, other = parameters(dtype=torch.complex64), parameters(dtype=torch.complex64)
    for params, options in ((mine, {"fused": True}), (other, {"foreach": False})):
        train(build(entry, variant, params, **options), params, range(1, 5), variant.lr)
    for name, param in other.items():
        torch.testing.assert_close(mine[name], param, rtol=1e-6, atol=1e-6)
    assert compiled.compilations() == kernels


def test_a_tensor_learning_rate_compiles_nothing():
    entry, variant = LION, LION.variants["decay"]
    params = parameters()
    optimizer = build(entry, variant, params, fused=True)
    train(optimizer, params, range(1, 3))
    kernels, traced = compiled.compilations(), graphs()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lr in (torch.tensor(1e-3), torch.tensor(1e-4, dtype=torch.float64), 1e-5):
            optimizer.param_groups[0]["lr"] = lr
            train(optimizer, params, range(3, 4))
    assert (compiled.compilations(), graphs()) == (kernels, traced)


def test_float64_parameters_are_stepped_in_float64():
    mine, other = parameters(dtype=torch.float64), parameters(dtype=torch.float64)
    options = {"lr": 1e-2, "betas": (0.9, 0.9999), "eps": 1e-8, "weight_decay": 0.1}
    fused = ADAM.cls(list(mine.items()), decouple_wd=True, fused=True, **options)
    theirs = torch.optim.AdamW(list(other.values()), foreach=False, **options)
    assert_goes_on_like(fused, mine, theirs, other, range(1, 11), 1e-10)


@pytest.mark.parametrize(
    ("entry", "options", "dtype"),
    [(LION, {"lr": 1e-4, "weight_decay": 0.1}, torch.bfloat16), (ADAM, {"lr": 1e-4}, torch.float16)],
    ids=["lion-bfloat16", "adam-float16"],
)
def test_kahan_compensation_survives_the_compiler(entry, options, dtype):
    # A compiler that drops `x.to(bfloat16).to(float32)` as pointless computes a compensation of 0.
    layouts = ("matrix", "large", "vector")
    mine, other = parameters(layouts, dtype), parameters(layouts, dtype)
    fused = entry.cls(list(mine.items()), fused=True, **options)
    loop = entry.cls(list(other.items()), foreach=False, **options)
    for optimizer, params in ((fused, mine), (loop, other)):
        train(optimizer, params, range(1, 41), follow=other if params is other else None)
    for name in mine:
        ours, theirs = fused.state[mine[name]]["kahan_comp"].float(), loop.state[other[name]]["kahan_comp"].float()
        assert float(ours.abs().mean()) > 0.5 * float(theirs.abs().mean()) > 0.0, "the compensation was compiled away"
        exact, other_exact = mine[name].float() + ours, other[name].float() + theirs
        torch.testing.assert_close(exact, other_exact, rtol=1e-4, atol=1e-5)


def test_small_models_are_not_compiled_unless_asked_for():
    before = compiled.compilations()
    params = parameters((*SMALL, "large"), torch.float32)
    train(ADAM.cls(list(params.items()), betas=(0.9, 0.5), maximize=True), params, range(1, 3))
    assert compiled.compilations() == before


def test_large_models_are_compiled_where_a_compiler_is_at_hand(monkeypatch):
    group = {"fused": None, "foreach": None}
    small, large = 1000, 1 << 40
    assert runners.choose(group, "cpu", large) is not runners.choose(group, "cpu", small)
    assert runners.choose({**group, "fused": False}, "cpu", large) is runners.choose(group, "cpu", small)
    monkeypatch.setattr(compiled, "missing", lambda device_type: "a C++ compiler")
    assert runners.choose(group, "cpu", large) is runners.choose(group, "cpu", small)


def test_fused_without_a_compiler_is_an_error_that_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(compiled, "missing", lambda device_type: "a C++ compiler (g++ or clang++)")
    params = parameters(("matrix",))
    optimizer = LION.cls(list(params.items()), fused=True)
    feed(params, 1)
    start = values(params)
    with pytest.raises(RuntimeError, match=r"fused=True needs a C\+\+ compiler"):
        optimizer.step()
    assert_same(values(params), start)
