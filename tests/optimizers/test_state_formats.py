"""State in bfloat16, 8 and 4 bits, and the ways in which bfloat16 parameters keep what rounding takes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import ENTRIES
from harness import assert_same, feed, snapshot, through_disk, train, values
from torch.utils._python_dispatch import TorchDispatchMode

import hfoptim
from hfoptim.engine import storage
from hfoptim.engine.pieces import PIECE
from hfoptim.engine.storage import convert

FORMATS = ("bfloat16", "8bit", "4bit")
# Divides by roots as small as they come, without a limit: an error in one of them is a step of any length.
WILD = {("adopt", "unclipped")}
VARIANTS = [
    pytest.param(entry, variant.options, form, id=f"{entry.name}-{name}-{form}", marks=marks)
    for entry in ENTRIES
    for i, (name, variant) in enumerate(entry.variants.items())
    if (entry.name, name) not in WILD
    for form in (FORMATS if i == 0 else ("8bit",))
    for marks in [[] if i == 0 and form == "8bit" else pytest.mark.slow]
]
every_format = pytest.mark.parametrize("state_dtype", FORMATS)
ROUNDED = [(form, rounding) for form in FORMATS for rounding in ("nearest", "stochastic")]
every_rounding = pytest.mark.parametrize(("state_dtype", "state_rounding"), ROUNDED)
KINDS: dict[str, dict[str, Any]] = {
    "kahan": {"kahan_sum": True},
    "stochastic": {"stochastic_rounding": True},
    "remainder8": {"master_weights": 8},
    "remainder16": {"master_weights": 16},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def made(shape, dtype, seed):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


# Parameters large enough to be compressed, in blocks of every kind: along rows, across rows, cut short, strided.
LARGE = {
    "matrix": lambda d: made((70, 130), d, 1),
    "vector": lambda d: made((5001,), d, 2),
    "narrow": lambda d: made((601, 9), d, 3),
    "conv": lambda d: made((16, 8, 6, 7), d, 4),
    "rows": lambda d: made((2, 4101), d, 5),
    "transposed": lambda d: made((130, 70), d, 6).t(),
    "channels_last": lambda d: made((16, 8, 6, 7), d, 7).contiguous(memory_format=torch.channels_last),
    "flat_channels_last": lambda d: made((300, 4, 2, 3), d, 8).contiguous(memory_format=torch.channels_last),
    "gaps": lambda d: made((70, 260), d, 9)[:, ::2],
    "small": lambda d: made((40, 50), d, 10),
}


def large(dtype=torch.float32, names=tuple(LARGE)):
    return {name: torch.nn.Parameter(LARGE[name](dtype)) for name in names}


def adamw(params, **options):
    return hfoptim.AdamW(list(params.items()), **{"lr": 1e-2, "weight_decay": 0.1, **options})


def states(optimizer, params):
    return {name: dict(optimizer.state[param]) for name, param in params.items()}


def assert_same_run(ours, mine, theirs, other):
    assert_same(values(mine), values(other))
    assert_same(states(ours, mine), states(theirs, other))


def decoded(optimizer, param, name):
    """A state as numbers."""
    group = next(g for g in optimizer.param_groups if any(p is param for p in g["params"]))
    rule, state = optimizer.rule_for(param, group), optimizer.state[param]
    return storage.converted(storage.FULL, rule, name, state, param)[name]


def bytes_of(optimizer, param):
    return sum(t.numel() * t.element_size() for key, t in optimizer.state[param].items() if key != "step")


def drift(mine, other, start):
    """How far two runs are apart, as a share of how far they have come."""
    apart = sum(float((p.detach() - other[name].detach()).square().sum()) for name, p in mine.items())
    moved = sum(float((p.detach() - start[name]).square().sum()) for name, p in other.items())
    return (apart / moved) ** 0.5


# -- every optimizer -------------------------------------------------------------------------------------------------

# Largest drift from the float32 run. A step that goes by the sign alone flips where the state is about zero.
NEAR = {"bfloat16": 0.05, "8bit": 0.15, "4bit": 0.5}
# DeMo moves by the signs of what its largest coefficients add up to: another coefficient flips many.
NEAR_OF = {"demo": 0.3}


@pytest.mark.parametrize(("entry", "options", "form"), VARIANTS)
def test_every_optimizer_stays_near_its_float32_run(entry, options, form):
    # Blocks that go across rows are not for sparse gradients.
    names = ("matrix", *(() if getattr(entry.cls, "sparse_only", False) else ("narrow",)), "conv", "small")

    def run(**more):
        params = large(names=names)
        optimizer = entry.cls(list(params.items()), **{**options, **more})
        train(optimizer, params, range(1, 9), follow=large(names=names))
        return params, optimizer

    start, (exact, reference) = values(large(names=names)), run()
    params, optimizer = run(state_dtype=form)
    for name, param in params.items():
        assert param.detach().isfinite().all()
        rule, state = optimizer.rule_for(param, optimizer.param_groups[0]), dict(optimizer.state[param])
        for key, declared in rule.state.items():
            compressed = declared.compressible and name != "small"
            assert state[key].dtype == (
                {"bfloat16": torch.bfloat16, "8bit": torch.uint8, "4bit": torch.uint8}[form]
                if compressed
                else reference.state[exact[name]][key].dtype
            )
            assert (f"{key}_scale" in state) == (compressed and form != "bfloat16")
    assert drift(params, exact, start) < max(NEAR[form], NEAR_OF.get(entry.name, 0.0)), form


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state_dtype", "most"), [("float32", 8.0), ("bfloat16", 4.0), ("8bit", 2.1), ("4bit", 1.1)])
def test_bytes_of_state_per_parameter(state_dtype, most):
    param = torch.nn.Parameter(torch.randn(1024, 768))
    optimizer = adamw({"matrix": param}, state_dtype=state_dtype)
    param.grad = torch.randn(1024, 768)
    optimizer.step()
    assert 0.9 * most <= bytes_of(optimizer, param) / param.numel() <= most


def test_state_is_compressed_from_4096_entries_on_and_only_what_has_the_parameters_shape():
    params = {f"{n}": torch.nn.Parameter(torch.randn(n)) for n in (4095, 4096)}
    optimizer = adamw(params, state_dtype="8bit")
    train(optimizer, params, range(1, 3))
    assert optimizer.state[params["4095"]]["exp_avg"].dtype is torch.float32
    assert optimizer.state[params["4096"]]["exp_avg"].dtype is torch.uint8
    matrix = large(names=("matrix",))
    factored = hfoptim.Adafactor(list(matrix.items()), beta1=0.9, state_dtype="8bit")
    train(factored, matrix, range(1, 3))
    state = factored.state[matrix["matrix"]]
    assert {name for name, tensor in state.items() if tensor.dtype is torch.uint8} == {"exp_avg"}


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation has made, those of some dtypes apart."""

    def __init__(self, but=()):
        super().__init__()
        self.numel, self.but = 0, but

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves((args, kwargs)) if _is(t)}
        for tensor in torch.utils._pytree.tree_leaves(out):
            new = _is(tensor) and not tensor.is_meta and tensor.dtype not in self.but
            if new and tensor.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, tensor.numel())
        return out


def _is(value):
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("name", ["matrix", "vector", "narrow", "conv", "rows", "transposed", "channels_last", "gaps"])
@pytest.mark.parametrize("foreach", [True, False])
@every_format
def test_a_large_parameter_is_stepped_in_pieces(state_dtype, foreach, name, monkeypatch):
    params = large(torch.bfloat16, (name,))
    optimizer = adamw(params, state_dtype=state_dtype, stochastic_rounding=True, foreach=foreach)
    train(optimizer, params, range(1, 3))
    monkeypatch.setitem(PIECE, "cpu", 1000)
    feed(params, 3)
    with _Largest() as largest:
        optimizer.step()
    # Codes are packed in pairs, and a piece has at least a row where memory has gaps.
    assert 0 < largest.numel <= 2048


@pytest.mark.parametrize("state_dtype", ["8bit", "4bit"])
def test_a_large_state_is_loaded_in_pieces(state_dtype, monkeypatch):
    names = ("matrix", "vector", "narrow", "conv", "rows")
    params, other = large(names=names), large(names=names)
    theirs, ours = adamw(params), adamw(other, state_dtype=state_dtype)
    train(theirs, params, range(1, 3))
    saved = theirs.state_dict()
    monkeypatch.setattr(convert, "_PIECE", 1000)
    with _Largest(but=(torch.uint8,)) as largest:
        ours.load_state_dict(saved)
    assert 0 < largest.numel <= 2000  # a row may be filled up to whole blocks
    whole = adamw(large(names=names), state_dtype=state_dtype)
    monkeypatch.undo()
    whole.load_state_dict(saved)
    assert_same(ours.state_dict(), whole.state_dict())


# -- loop and foreach ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("piece", [None, 2000], ids=["whole", "pieces"])
@every_rounding
def test_foreach_equals_the_loop_in_pieces_or_whole(state_dtype, state_rounding, piece, dtype, monkeypatch):
    options = {"state_dtype": state_dtype, "state_rounding": state_rounding, "stochastic_rounding": True}
    mine, other = large(dtype), large(dtype)
    foreach, loop = adamw(mine, foreach=True, **options), adamw(other, foreach=False, **options)
    train(loop, other, range(1, 4))
    if piece is not None:
        monkeypatch.setitem(PIECE, "cpu", piece)
    train(foreach, mine, range(1, 4))
    # An operation may round otherwise at the end of a vector register than in its midst; a code may then flip.
    for name, param in mine.items():
        for key, theirs in states(loop, other)[name].items():
            ours = foreach.state[param][key]
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            if theirs.dtype is torch.uint8:
                parts = (
                    [(ours, theirs)]
                    if ours.shape == param.shape
                    else [(ours & 15, theirs & 15), (ours >> 4, theirs >> 4)]
                )
                for a, b in parts:
                    apart = (a.int() - b.int()).abs()
                    assert apart.max() <= 1
                    assert apart.float().mean() < 1e-3
            elif key != "step":
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-6)
    assert drift(mine, other, values(large(dtype))) < 1e-2


@every_rounding
def test_a_parameter_steps_alike_alone_and_among_others(state_dtype, state_rounding):
    # One backend for both: alone, the parameter is too small to be compiled for.
    options = {"state_dtype": state_dtype, "state_rounding": state_rounding, "foreach": True}
    together = large()
    train(adamw(together, **options), together, range(1, 4))
    alone = large(names=("matrix",))
    train(adamw(alone, **options), alone, range(1, 4))
    # The first parameter has the same random bits in both.
    assert_same(alone["matrix"].detach(), together["matrix"].detach())


def test_groups_choose_for_themselves():
    params = large(names=("matrix", "vector", "narrow"))
    optimizer = hfoptim.AdamW(
        [
            {"params": [("matrix", params["matrix"])], "state_dtype": "8bit"},
            {"params": [("vector", params["vector"])], "state_dtype": "4bit", "state_rounding": "stochastic"},
            {"params": [("narrow", params["narrow"])]},
        ],
        lr=1e-2,
    )
    train(optimizer, params, range(1, 4))
    kept = [optimizer.state[p]["exp_avg"] for p in params.values()]
    assert [t.dtype for t in kept] == [torch.uint8, torch.uint8, torch.float32]
    assert [tuple(t.shape) for t in kept[:2]] == [(70, 130), (1, 2501)]


# -- copies and resuming ---------------------------------------------------------------------------------------------

SAVED = [
    pytest.param(
        dtype, {**kind, "state_dtype": form, "state_rounding": rounding}, id=f"{dtype}-{name}-{form}-{rounding}"
    )
    for form, rounding in ROUNDED
    for dtype, name, kind in [
        (torch.float32, "plain", {}),
        (torch.bfloat16, "stochastic", KINDS["stochastic"]),
        (torch.bfloat16, "remainder8", KINDS["remainder8"]),
        (torch.bfloat16, "remainder16", KINDS["remainder16"]),
    ]
]
FEW = ("matrix", "vector", "transposed", "small")


@pytest.mark.parametrize(("dtype", "options"), SAVED)
def test_resuming_equals_going_on_bit_for_bit(dtype, options):
    whole = large(dtype, FEW)
    optimizer = adamw(whole, **options)
    train(optimizer, whole, range(1, 4))
    saved, weights = through_disk(optimizer.state_dict()), values(whole)
    assert_same(saved, optimizer.state_dict())
    copied, twin = copy.deepcopy((whole, optimizer))
    pickled, double = pickle.loads(pickle.dumps((whole, optimizer)))
    train(optimizer, whole, range(4, 7))
    resumed = large(dtype, FEW)
    with torch.no_grad():
        for name, param in resumed.items():
            param.copy_(weights[name])
    again = adamw(resumed, **options)
    again.load_state_dict(saved)
    assert_same(again.state_dict(), saved)
    for other, params in ((again, resumed), (twin, copied), (double, pickled)):
        train(other, params, range(4, 7))
        assert_same_run(other, params, optimizer, whole)


@pytest.mark.parametrize("wanted", ["float32", *FORMATS])
@pytest.mark.parametrize("saved", ["float32", *FORMATS])
def test_loading_brings_state_into_the_form_that_the_run_asks_for(saved, wanted):
    params, other = large(), large()
    theirs, ours = adamw(params, state_dtype=saved), adamw(other, state_dtype=wanted)
    train(theirs, params, range(1, 4))
    state_dict = theirs.state_dict()
    ours.load_state_dict(through_disk(state_dict))
    assert ours.param_groups[0]["state_dtype"] == wanted
    fresh_params = large()
    fresh = adamw(fresh_params, state_dtype=wanted)
    train(fresh, fresh_params, range(1, 2))
    tolerance = {"float32": 0.0, "bfloat16": 2**-8, "8bit": 0.02, "4bit": 0.3}
    most = max(tolerance[wanted], tolerance[saved]) if saved != wanted else 0.0
    if wanted == "float32":
        most = 0.0
    for name, param in other.items():
        state, usual = ours.state[param], fresh.state[fresh_params[name]]
        assert {k: (v.dtype, v.shape) for k, v in state.items()} == {k: (v.dtype, v.shape) for k, v in usual.items()}
        for key in ("exp_avg", "exp_avg_sq"):
            mine, before = decoded(ours, param, key), decoded(theirs, params[name], key)
            error = (mine - before).norm() / before.norm()
            assert error <= most, (name, key)
    train(ours, other, range(4, 6))
    assert_same(theirs.state_dict(), state_dict)


def test_a_checkpoint_of_torch_loads_into_8_bits_and_goes_on():
    params, other = large(names=FEW), large(names=FEW)
    theirs = torch.optim.Adam(list(params.values()), lr=1e-2, weight_decay=0.1)
    train(theirs, params, range(1, 4))
    ours = hfoptim.Adam(list(other.values()), lr=1e-2, weight_decay=0.1, state_dtype="8bit")
    ours.load_state_dict(through_disk(theirs.state_dict()))
    with torch.no_grad():
        for name, param in other.items():
            param.copy_(params[name])
    start = values(params)
    train(theirs, params, range(4, 8))
    train(ours, other, range(4, 8), follow=params)
    assert ours.state[other["matrix"]]["exp_avg"].dtype is torch.uint8
    assert drift(other, params, start) < 0.1


def test_codes_of_another_shape_are_refused_and_nothing_changes():
    params = large(names=("matrix", "narrow"))
    optimizer = adamw(params, state_dtype="8bit")
    train(optimizer, params, range(1, 3))
    before = snapshot(optimizer, params)
    for change in (
        lambda s: s.update(exp_avg=s["exp_avg"][:, :-1]),
        lambda s: s.update(exp_avg_scale=s["exp_avg_scale"][:-1]),
        lambda s: s.pop("exp_avg_scale"),
        lambda s: s.pop("exp_avg"),
        lambda s: s.update(exp_avg=torch.zeros(70, 129)),
    ):
        wrong = copy.deepcopy(optimizer.state_dict())
        change(wrong["state"][0])
        with pytest.raises(ValueError, match=r"exp_avg"):
            optimizer.load_state_dict(wrong)
        assert_same(snapshot(optimizer, params), before)


def test_the_form_may_be_changed_between_steps():
    params = large(names=FEW)
    optimizer = adamw(params)
    for t, form in enumerate(("float32", "8bit", "4bit", "bfloat16", "8bit", "float32"), start=1):
        optimizer.param_groups[0]["state_dtype"] = form
        train(optimizer, params, range(t, t + 1))
        state = optimizer.state[params["matrix"]]
        assert ("exp_avg_scale" in state) == (form in ("8bit", "4bit"))
        assert state["exp_avg"].shape == ((70, 65) if form == "4bit" else (70, 130))
        assert all(p.detach().isfinite().all() for p in params.values())
    assert state["exp_avg"].dtype is torch.float32


# -- bfloat16 parameters ---------------------------------------------------------------------------------------------

# Steps far below the spacing of bfloat16 numbers around 1, which is 1/128.
SLOW = {"lr": 1e-4, "weight_decay": 0.0}
STEPS = 100


@pytest.fixture(scope="module")
def slow():
    """(start, end, gradients) of a float32 run with small steps."""
    param = torch.nn.Parameter(made((70, 130), torch.bfloat16, 1).float())
    start, grads = param.detach().clone(), []
    optimizer = hfoptim.Lion([param], **SLOW)
    for t in range(STEPS):
        grads.append((made((70, 130), torch.float32, 50 + t) + 0.7 * start).to(torch.bfloat16))
        param.grad = grads[-1].float()
        optimizer.step()
    return start, param.detach(), grads


def run_slow(slow, **options):
    start, _, grads = slow
    param = torch.nn.Parameter(start.to(torch.bfloat16))
    optimizer = hfoptim.Lion([param], **SLOW, **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param, optimizer


@every_kind
def test_small_steps_are_not_lost(slow, kind):
    start, end, _ = slow
    moved = (end - start).norm()
    plain, _ = run_slow(slow, kahan_sum=False)
    assert (plain.detach().float() - end).norm() > 0.9 * moved, "plain rounding would have done"
    param, _ = run_slow(slow, **kind)
    mine = param.detach().float() - end
    # An entry is about a rounding away, or has walked at random by half of one per step; on average it is right.
    spacing = torch.finfo(torch.bfloat16).eps * torch.maximum(start.abs(), end.abs()) + 1e-6
    assert (mine.abs() <= (5 * 0.5 * STEPS**0.5 if "stochastic_rounding" in kind else 1.01) * spacing).all()
    assert abs(float((mine * end.sign()).mean())) < 0.1 * float((end - start).abs().mean())


def test_sixteen_bits_more_are_the_float32_run_exactly(slow):
    param, optimizer = run_slow(slow, master_weights=16)
    _, end, _ = slow
    rest = optimizer.state[param]["remainder"]
    assert rest.dtype is torch.int16
    assert torch.equal(storage.join_float32(param.detach(), rest), end)
    number, again = storage.split_float32(end, torch.int16)
    assert torch.equal(param.detach(), number)
    assert torch.equal(rest, again)


def test_eight_bits_more_are_nearly_the_float32_run(slow):
    start, end, _ = slow
    param, optimizer = run_slow(slow, master_weights=8)
    rest = optimizer.state[param]["remainder"]
    assert rest.dtype is torch.int8
    exact = storage.join_float32(param.detach(), rest)
    # A step is 3.3 of the smallest differences between such numbers, and is rounded.
    assert (exact - end).norm() < 0.1 * (end - start).norm()


@pytest.mark.parametrize("clear", [True, False])
def test_the_remainder_of_a_parameter_that_was_written_does_no_harm(slow, clear):
    param, optimizer = run_slow(slow, master_weights=16)
    with torch.no_grad():
        param.zero_() if clear else param.copy_(slow[0])
    written = param.detach().float().clone()
    param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(param.detach().float(), written)


def test_another_way_of_keeping_the_rest_starts_anew():
    params = large(torch.bfloat16, ("matrix", "small"))
    optimizer = adamw(params, master_weights=16)
    train(optimizer, params, range(1, 3))
    saved = through_disk(optimizer.state_dict())
    exact = {n: storage.join_float32(p.detach(), optimizer.state[p]["remainder"]) for n, p in params.items()}

    def loaded(**options):
        other = {name: torch.nn.Parameter(p.detach().clone()) for name, p in params.items()}
        again = adamw(other, **options)
        again.load_state_dict(saved)
        return {name: dict(again.state[p]) for name, p in other.items()}

    for state in (*loaded().values(), *loaded(stochastic_rounding=True).values()):
        assert not {"remainder", "kahan_comp"} & state.keys()
    for name, state in loaded(master_weights=8).items():
        shorter = storage.join_float32(params[name].detach(), state["remainder"])
        torch.testing.assert_close(shorter, exact[name], rtol=2**-15, atol=0.0)
    assert_same(loaded(master_weights=16), states(optimizer, params))


def test_kahan_follows_optimi():
    # With steps and values of few binary digits nothing is rounded but the parameter itself: both agree bit for bit.
    start = (1 + torch.arange(128) / 128).to(torch.bfloat16)
    mine, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = hfoptim.SGD([mine], lr=2.0**-10)
    theirs = pytest.importorskip("optimi").SGD(
        [other], lr=2.0**-10, momentum=0.0, kahan_sum=True, foreach=False, triton=False
    )
    for t in range(60):
        g = torch.Generator().manual_seed(t)
        grad = torch.randint(-2, 4, start.shape, generator=g).to(torch.bfloat16)
        mine.grad, other.grad = grad.clone(), grad.clone()
        ours.step()
        theirs.step()
        assert torch.equal(mine, other)
        assert torch.equal(ours.state[mine]["kahan_comp"], theirs.state[other]["kahan_comp"])
    assert not torch.equal(mine.detach(), start)


@pytest.mark.parametrize("option", [{"stochastic_rounding": True}, {"master_weights": 8}, {"master_weights": 16}])
def test_options_for_bfloat16_change_nothing_in_wider_parameters(option):
    for dtype in (torch.float32, torch.float64):
        mine, other = large(dtype, FEW), large(dtype, FEW)
        ours, theirs = adamw(mine, **option), adamw(other)
        train(ours, mine, range(1, 4))
        train(theirs, other, range(1, 4))
        assert_same_run(ours, mine, theirs, other)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_dtype": "int8"}, "state_dtype='int8'.*'8bit'"),
        ({"state_dtype": 8}, "state_dtype=8"),
        ({"state_dtype": None}, "state_dtype=None"),
        ({"state_dtype": torch.bfloat16}, "state_dtype=torch.bfloat16"),
        ({"state_rounding": "up"}, "state_rounding='up'"),
        ({"master_weights": 32}, "master_weights=32"),
        ({"master_weights": True}, "master_weights=True"),
        ({"master_weights": "12"}, "master_weights=12"),
        ({"kahan_sum": True, "stochastic_rounding": True}, "kahan_sum=True and stochastic_rounding=True exclude"),
        ({"kahan_sum": True, "master_weights": 8}, "kahan_sum=True and master_weights=8 exclude"),
        ({"stochastic_rounding": True, "master_weights": 16}, "stochastic_rounding=True and master_weights=16 exclude"),
    ],
    ids=str,
)
def test_unknown_forms_and_combinations_are_refused(options, message):
    params = large(names=("small",))
    with pytest.raises(ValueError, match=message):
        adamw(params, **options)
    with pytest.raises(ValueError, match=message):
        hfoptim.AdamW([{"params": list(params.values()), **options}])
    assert adamw(params, kahan_sum=False, stochastic_rounding=True)
    with pytest.raises(TypeError, match="stochastic_rounding"):
        adamw(params, stochastic_rounding="True")


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.float64, {"state_dtype": "8bit"}, "state_dtype='8bit'.*float64"),
        (torch.complex64, {"state_dtype": "4bit"}, "state_dtype='4bit'.*complex64"),
        (torch.float16, {"stochastic_rounding": True}, "stochastic_rounding=True.*float16"),
        (torch.float16, {"master_weights": 8}, "master_weights=8.*float16"),
    ],
    ids=str,
)
def test_dtypes_that_an_option_is_not_for_are_refused_before_anything_moves(dtype, options, message):
    params = {"fine": torch.nn.Parameter(torch.ones(3)), "other": torch.nn.Parameter(torch.ones(80, 80, dtype=dtype))}
    optimizer = adamw(params, **options)
    feed(params, 1)
    start = values(params)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert_same(values(params), start)
