"""The compiled runner: the loop's numbers from generated kernels, made once, and none when a number changes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from cases import ENTRIES
from cases.adafactor import ADAFACTOR
from cases.adam import ADAM, ADAMW
from cases.adam_mini import ADAM_MINI
from cases.lamb import LAMB
from cases.lion import LION
from cases.novograd import NOVOGRAD
from cases.sgd import SGD
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

from hfoptim.engine import backends
from hfoptim.engine.backends import compiled
from hfoptim.engine.codegen import build as libraries
from hfoptim.engine.codegen import native
from hfoptim.engine.rule import ELEMENT

pytestmark = pytest.mark.skipif(compiled.missing() is not None, reason=f"needs {compiled.missing()}")
# Layouts for variants that are not compiled with their own: of every number of dimensions, some of them with gaps.
FEW = ("scalar", "vector", "matrix", "transposed", "gaps", "stack", "large")


def build(entry, variant, params, **options):
    return entry.cls(list(params.items()), **{**variant.options, **options})


# Whose kernels are compiled in the usual precision, too, and in one whose parameters are rounded: one for each kind.
IN_EVERY_DTYPE = (ADAMW, LION, ADAFACTOR, LAMB)


def _marks(entry, name, dtype):
    """A kernel costs a second: `make test` compiles those of one variant, in the precision that shows every error."""
    if dtype is torch.float64:
        chosen = next((key for key, variant in entry.variants.items() if variant.compiled), next(iter(entry.variants)))
        return [] if name == chosen else pytest.mark.slow
    return pytest.mark.kind if entry in IN_EVERY_DTYPE else pytest.mark.slow


COMPILED = [
    pytest.param(
        *(entry, variant, dtype),
        id=f"{entry.name}-{name}-{str(dtype).removeprefix('torch.')}",
        marks=_marks(entry, name, dtype),
    )
    for entry in ENTRIES
    for name, variant in entry.variants.items()
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    if variant.traceable
    if dtype is torch.float64 or variant.compiled
    if dtype is not torch.bfloat16 or entry in IN_EVERY_DTYPE
]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}
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
    "alpha": [0.9, 0.8, 0.7, 0.6, 0.5, 0.0],
    "clip_exp": [0.333, 0.25, 0.5, 0.0, 1.0, 0.2],
    "lr_decay": [0.1, 0.0, 0.2, 0.3, 0.05, 0.15],
    "global_clipnorm": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "max_grad_norm": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
    "trust_coeff": [0.1, 0.2, 0.3, 0.15, 0.05, 0.25],
}


def graphs():
    """How many graphs torch.compile has made in this process."""
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def torch_compiles_nothing():
    before = graphs()
    yield
    assert graphs() == before


def set_numbers(optimizer, t, lr):
    set_lr(optimizer, t, lr)
    for group in optimizer.param_groups:
        for name, given in MOVING.items():
            if name == "alpha" and group.get(name, 1.0) < 1.0:  # RMSprop's is a rate, AdEMAMix' a factor
                continue
            if isinstance(group.get(name), (float, tuple)) and not (name == "eps" and isinstance(group[name], tuple)):
                value = given[t % len(given)]
                group[name] = value[: len(group[name])] if isinstance(value, tuple) else value


def weights(optimizer, params):
    """All values as one vector, with what rounding left of them."""
    rests = {name: optimizer.state[param].get("kahan_comp") for name, param in params.items()}
    wide = {name: p if rests[name] is None else p.float() + rests[name].float() for name, p in params.items()}
    return flattened(wide)


@pytest.mark.parametrize(("entry", "variant", "dtype"), COMPILED)
def test_equals_the_loop_and_compiles_once_whatever_number_changes(entry, variant, dtype, request):
    if dtype is torch.float64:
        request.getfixturevalue("quick_compiler")
    layouts = variant.layouts if variant.compiled else FEW
    mine, other = parameters(layouts, dtype), parameters(layouts, dtype)
    start = values(mine)
    fused, loop = build(entry, variant, mine, fused=True), build(entry, variant, other, foreach=False)
    rows = ([], [])
    for t in range(1, 9):
        if t == 3:
            kernels = native.compiled()
        for optimizer, params, row in zip((fused, loop), (mine, other), rows, strict=True):
            set_numbers(optimizer, t, variant.lr)
            feed(params, t, follow=other)
            before = {name: (param.grad.clone(), param.grad._version) for name, param in params.items()}
            optimizer.step()
            for name, (grad, version) in before.items():
                assert torch.equal(params[name].grad, grad), name
                assert params[name].grad._version == version, name
            row.append(weights(optimizer, params))
    tolerance = TOLERANCE[dtype]
    assert_follows(*rows, {name: p.to(rows[1][0].dtype) for name, p in start.items()}, tolerance)
    assert_moved(other, start)
    assert native.compiled() == kernels, "compiled again after the second step"
    for name in mine:
        ours, theirs = fused.state[mine[name]], loop.state[other[name]]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key].dtype == value.dtype
            if key != "kahan_comp":
                atol = 0.1 * tolerance * float(value.abs().max())
                torch.testing.assert_close(ours[key], value, rtol=tolerance, atol=atol)


@pytest.mark.parametrize(
    ("entry", "variant"),
    [pytest.param(entry, v, id=entry.name) for entry in ENTRIES for v in entry.variants.values() if v.compiled],
)
def test_what_lies_in_one_piece_is_not_left_to_the_loop(entry, variant, monkeypatch):
    def refuse(bucket):
        raise AssertionError(f"{bucket.rows[0].param.shape} is left without a kernel")

    for name in ("loop", "foreach"):
        monkeypatch.setattr(backends.KERNELS_ASKED, name, SimpleNamespace(step=refuse))
    layouts = [name for name in variant.layouts if name not in ("scalar", "one", "gaps", "mixed", "expanded")]
    if "conv" not in layouts:
        layouts = [name for name in layouts if name not in ("transposed", "channels_last")]
    params = parameters(layouts, torch.float64)
    train(build(entry, variant, params, fused=True), params, range(1, 3))


def is_element_wise(entry, variant):
    optimizer = build(entry, variant, parameters(("matrix",)))
    group = optimizer.param_groups[0]
    return optimizer.rule_for(group["params"][0], group).scope is ELEMENT and not group["caution"]


ELEMENT_WISE = [
    pytest.param(entry, variant, id=f"{entry.name}-{name}")
    for entry in ENTRIES
    for name, variant in entry.variants.items()
    if variant.compiled and is_element_wise(entry, variant)
]


@pytest.mark.parametrize(("entry", "variant"), ELEMENT_WISE)
def test_an_element_wise_rule_has_one_kernel_for_all_shapes(entry, variant):
    first = parameters(("matrix",), torch.float64)
    train(build(entry, variant, first, fused=True), first, range(1, 3))
    known = libraries.load.cache_info().currsize
    shapes = (
        (2,),
        (3, 2),
        (97, 89),
        (5, 5),
        (2, 2),
        (64, 1),
        (30000,),
        (1 << 16,),
        (2, 2, 2, 2),
        (31, 3, 1, 1),
        (),
        (1,),
    )
    ones = [torch.ones(shape, dtype=torch.float64) for shape in shapes]
    tensors = {f"{i}": torch.nn.Parameter(value) for i, value in enumerate(ones)}
    optimizer = build(entry, variant, tensors, fused=True)
    for _ in range(2):
        for param in tensors.values():
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    assert all(not torch.equal(p.detach(), torch.ones_like(p)) for p in tensors.values())
    # A probe's kernel is looked up by shape, too, and is the same.
    assert libraries.load.cache_info().currsize == known


def test_a_kernel_is_made_for_a_rule_its_options_and_dtypes_and_no_more():
    # A plain momentum without decay under maximize is an option of no other test: this kernel is new.
    def added(dtype=torch.float32, **options):
        before = native.compiled()
        params = parameters((*SMALL, "large"), dtype)
        train(
            SGD.cls(list(params.items()), lr=1e-2, momentum=0.9, maximize=True, fused=True, **options),
            params,
            [1, 2, 3],
        )
        return native.compiled() - before

    assert added() == 1
    assert added() == 0
    assert added(weight_decay=0.1) == 0
    assert added(torch.float64) == 1
    assert added(torch.bfloat16) == 1
    assert added(torch.bfloat16, kahan_sum=False) == 1
    assert added(nesterov=True) == 1


@pytest.mark.parametrize(
    "layouts", [("scalar",), ("one",), ("scalar", "one"), ("vector",), ("gaps",), ("expanded",)], ids=str
)
@pytest.mark.parametrize("entry", [LION, LAMB, ADAFACTOR], ids=lambda entry: entry.name)
def test_a_few_entries_and_none_take_the_same_step(entry, layouts):
    variant = next(v for v in entry.variants.values() if v.compiled)
    mine, other = parameters(layouts, torch.float64), parameters(layouts, torch.float64)
    for params, options in ((mine, {"fused": True}), (other, {"foreach": False})):
        params["empty"] = torch.nn.Parameter(torch.zeros(0, 2, dtype=torch.float64))
        optimizer = build(entry, variant, params, **options)
        for t in range(1, 4):
            feed({name: params[name] for name in layouts}, t)
            params["empty"].grad = torch.zeros_like(params["empty"])
            optimizer.step()
    for name, param in other.items():
        torch.testing.assert_close(mine[name], param, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entry", [ADAFACTOR, LAMB, NOVOGRAD, ADAM_MINI], ids=lambda entry: entry.name)
def test_other_shapes_of_the_same_kind_compile_nothing_under_rules_with_reductions(entry):
    variant = next(v for v in entry.variants.values() if v.compiled)
    params = {"a": torch.nn.Parameter(torch.ones(5, 3).double()), "b": torch.nn.Parameter(torch.ones(7).double())}
    train(build(entry, variant, params, fused=True), params, range(1, 3))
    kernels = native.compiled()
    more = {"a": torch.nn.Parameter(torch.ones(300, 200).double()), "b": torch.nn.Parameter(torch.ones(4097).double())}
    more |= {"c": torch.nn.Parameter(torch.ones(2, 2).double()), "d": torch.nn.Parameter(torch.ones(9, 3).double().t())}
    train(build(entry, variant, more, fused=True), more, range(1, 4))
    assert native.compiled() == kernels


@pytest.mark.parametrize("entry", [LION, LAMB, ADAFACTOR], ids=lambda entry: entry.name)
def test_resuming_equals_going_on_bit_for_bit(entry):
    variant = next(v for v in entry.variants.values() if v.compiled)
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
    kernels = native.compiled()
    mine, other = parameters(dtype=torch.complex64), parameters(dtype=torch.complex64)
    for params, options in ((mine, {"fused": True}), (other, {"foreach": False})):
        train(build(entry, variant, params, **options), params, range(1, 5), variant.lr)
    for name, param in other.items():
        torch.testing.assert_close(mine[name], param, rtol=1e-6, atol=1e-6)
    assert native.compiled() == kernels


def test_a_tensor_learning_rate_compiles_nothing():
    entry, variant = LION, LION.variants["decay"]
    params = parameters()
    optimizer = build(entry, variant, params, fused=True)
    train(optimizer, params, range(1, 3))
    kernels = native.compiled()
    for lr in (torch.tensor(1e-3), torch.tensor(1e-4, dtype=torch.float64), 1e-5):
        optimizer.param_groups[0]["lr"] = lr
        train(optimizer, params, range(3, 4))
    assert native.compiled() == kernels


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
    # A compiler that drops a cast to bfloat16 and back as pointless computes a compensation of 0.
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


# -- which runner ----------------------------------------------------------------------------------------------------


def test_small_models_are_not_compiled_unless_asked_for():
    before = native.compiled()
    params = parameters(("matrix", "vector", "conv", "large"), torch.float32)
    train(ADAM.cls(list(params.items()), betas=(0.9, 0.5), maximize=True, caution=True), params, range(1, 3))
    assert native.compiled() == before


def shapes_of(count, *shape):
    return [torch.empty(shape, device="meta") for _ in range(count)]


MODELS = {
    "a network of two layers": (shapes_of(2, 64, 64) + shapes_of(2, 64), False),
    "8 tensors of 10 thousand entries in all": (shapes_of(8, 25, 50), False),
    "148 tensors of 8x8": (shapes_of(148, 8, 8), True),
    "one tensor of 100 thousand entries": (shapes_of(1, 100_000), True),
    "128 adapter matrices": (shapes_of(64, 8, 4096) + shapes_of(64, 4096, 8), True),
}


@pytest.mark.parametrize(("tensors", "expected"), MODELS.values(), ids=MODELS)
def test_what_is_compiled_without_being_asked_for(tensors, expected):
    size = sum(map(backends.size_of, tensors))
    assert (backends.KERNELS in backends.choose({"fused": None, "foreach": None}, "cpu", size)) is expected


def test_large_models_are_compiled_where_a_compiler_is_at_hand(monkeypatch):
    group = {"fused": None, "foreach": None}
    small, large = 1000, 1 << 40
    assert backends.choose(group, "cpu", large) == (backends.MATRIX, backends.KERNELS)
    assert backends.KERNELS not in backends.choose(group, "cpu", small)
    for options in ({"fused": False}, {"foreach": True}, {"foreach": False}):
        assert backends.KERNELS not in backends.choose({**group, **options}, "cpu", large)
    assert backends.choose({**group, "fused": True}, "cpu", small) == (backends.MATRIX, backends.KERNELS_ASKED)
    monkeypatch.setattr(compiled, "missing", lambda: "a C++ compiler")
    compiled.warn_uncompiled.cache_clear()
    with pytest.warns(UserWarning, match="without compiled kernels"):
        assert backends.choose(group, "cpu", large) == backends.choose(group, "cpu", small)


def test_a_model_is_large_or_small_by_all_of_its_parameters(monkeypatch):
    taken = []
    monkeypatch.setattr(backends.KERNELS, "step", lambda bucket: taken.append(len(bucket.rows)) or step(bucket))
    step = backends.LOOP.step
    params = {f"{i}": torch.nn.Parameter(torch.ones(10)) for i in range(10)}
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 10 * backends.size_of(params["0"]))
    train(LION.cls(list(params.items())), params, range(1, 2))
    assert taken == [10]
    params.pop("0")
    train(LION.cls(list(params.items())), params, range(1, 2))
    assert taken == [10]


def test_fused_without_a_compiler_is_an_error_that_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(compiled, "missing", lambda: "a C++ compiler (g++ or clang++)")
    params = parameters(("matrix",))
    optimizer = LION.cls(list(params.items()), fused=True)
    feed(params, 1)
    start = values(params)
    with pytest.raises(RuntimeError, match=r"fused=True needs a C\+\+ compiler"):
        optimizer.step()
    assert_same(values(params), start)


def test_what_is_missing_is_the_compiler(monkeypatch):
    monkeypatch.setattr(compiled.build, "compiler", lambda: None)
    monkeypatch.setattr(compiled.build, "missing", compiled.build.missing.__wrapped__)
    assert compiled.missing() == "a C++ compiler (g++ or clang++)"
    params = parameters(("matrix",))
    monkeypatch.setitem(backends.COMPILE_FROM, "cpu", 1)
    train(LION.cls(list(params.items())), params, range(1, 3))  # by another runner
