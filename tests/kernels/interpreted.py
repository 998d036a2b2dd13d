"""What generated Triton does, in Triton's interpreter: the arithmetic, not the speed.

test_triton.py runs this file in a process of its own, where TRITON_INTERPRET=1 is set before anything imports Triton.
"""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from operator_cases import (
    ELEMENTWISE,
    ELEMENTWISE_STATES,
    differing,
    elementwise,
    operands,
)
from rows import assert_near, bucket_of, by_loop, copied
from test_native import SHAPES as ALL_SHAPES
from test_native import made
from triton.runtime import interpreter  # type: ignore[import-untyped]

import hfoptim
from hfoptim.engine import ELEMENT, MATRIX, MatrixFunction, Probe, Rule, RunState, backends, storage
from hfoptim.engine.backends import compiled, trial, triton
from hfoptim.engine.bucket import Bucket
from hfoptim.engine.codegen.trace import Symbol
from hfoptim.engine.codegen.triton import kernel, launch, scalars
from hfoptim.engine.codegen.triton.scalars import Arithmetic
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import nonnegative, scalar, zeros
from hfoptim.engine.storage import Format, Rounding, Storage
from hfoptim.registry.lookup import option_names

# They are of the engine: no part of an optimizer's budget.
pytestmark = pytest.mark.kind

SHAPES = [(7,), (40, 60), (), (3, 5, 2), (2500,), (64, 32), (0, 3), (1024,)]
# Parameters whose state is kept in fewer bits have 4096 entries: whole blocks of codes, ragged ones.
LARGE = [(9, 512), (4099,), (3,)]
FORMS = {
    "float32": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "float16": (torch.float16, {}),
    "kahan": (torch.bfloat16, {}),
    "plain": (torch.bfloat16, {"kahan_sum": False}),
    "stochastic": (torch.bfloat16, {"stochastic_rounding": True}),
    "remainder8": (torch.bfloat16, {"master_weights": 8}),
    "remainder16": (torch.bfloat16, {"master_weights": 16}),
    "caution": (torch.float32, {"caution": True}),
    "cautious_decay": (torch.float32, {"cautious_weight_decay": True}),
    "rows": (torch.float32, {"gradient_centralization": True, "adaptive_clip": 0.05}),
    "tensors": (torch.float32, {"orthograd": True, "hyperball": True}),
    "bfloat16_state": (torch.float32, {"state_dtype": "bfloat16"}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "4bit": (torch.float32, {"state_dtype": "4bit"}),
    "8bit_by_chance": (torch.bfloat16, {"state_dtype": "8bit", "state_rounding": "stochastic"}),
    "4bit_by_chance": (torch.float32, {"state_dtype": "4bit", "state_rounding": "stochastic"}),
}


@pytest.fixture(autouse=True)
def numbers_of_single_entries(monkeypatch):
    """Triton 3.6's interpreter asks numpy for the number of an array with one entry, as numpy 2.4 does not let it."""
    real = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        real(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


@pytest.fixture
def on_cpus(monkeypatch):
    """Every optimizer takes its steps by generated Triton, also on a CPU, and by nothing else."""
    monkeypatch.setattr(triton, "DEVICES", ("cpu", "meta"))
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.MATRIX_TRITON_ASKED, backends.TRITON_ASKED))


def trained(name, form, steps=2, by=None):
    """(the first values of parameters, the last, the states) of a run."""
    dtype, options = FORMS[form]
    shapes = LARGE if "state_dtype" in options else SHAPES
    g = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=g).to(dtype) for shape in shapes]
    params = [torch.nn.Parameter(value.clone()) for value in start]
    named = [(f"layers.{i}.weight", param) for i, param in enumerate(params)]
    known = option_names(name)
    options = {**options, **({"weight_decay": 0.1} if "weight_decay" in known else {})}
    options |= {"foreach": False} if by is None else {"fused": True}
    with warnings.catch_warnings():
        if by:
            warnings.simplefilter("error", UserWarning)
        optimizer = hfoptim.create_optimizer_v2(named, name, lr=1e-2, **options)
        for _ in range(steps):
            for param in params:
                param.grad = torch.randn(param.shape, generator=g).to(dtype)
            optimizer.step()
    return start, [param.detach() for param in params], [optimizer.state[param] for param in params]


def assert_follows(name, form, request):
    start, theirs, states = trained(name, form)
    request.getfixturevalue("on_cpus")
    _, ours, mine = trained(name, form, by="triton")
    for before, a, b, state, other in zip(start, ours, theirs, mine, states, strict=True):
        if not a.numel():
            continue
        # A rounding of the parameter may fall the other way; few do.
        slack = 2 * torch.finfo(b.dtype).eps * b.double().abs()
        moved = (b.double() - before.double()).abs().max().clamp(min=1e-12)
        off = ((a.double() - b.double()).abs() - slack).clamp(min=0.0) / moved
        if a.dtype in (torch.float16, torch.bfloat16):
            assert float((a != b).double().mean()) <= 0.02
        if "bit" in form:  # as may that of a code
            assert float((off > 1e-4).double().mean()) <= 0.01
        assert off.max() < (1.0 if "bit" in form else 1e-3)
        for key, value in other.items():
            if torch.is_tensor(value) and value.dtype is torch.uint8:
                assert float((state[key] != value).double().mean()) < 0.01, key
            elif key == "remainder":
                apart = storage.join_float32(a, state[key]).double() - storage.join_float32(b, value).double()
                assert apart.abs().max() / moved < 0.05
            elif key == "kahan_comp":  # what is left of a parameter that was rounded the other way
                apart = (state[key].double() - value.double()).abs() > 1e-2 * value.double().abs().max()
                assert float(apart.double().mean()) < 0.02, key
            elif torch.is_tensor(value):
                apart = (state[key].double() - value.double()).abs().max()
                assert apart <= 1e-2 * value.double().abs().max() + 1e-12, key


FEW = [
    *(
        ("adamw", form)
        for form in ("float32", "float64", "kahan", "stochastic", "remainder8", "8bit", "4bit_by_chance")
    ),
    ("lamb", "kahan"),
    *((name, "kahan") for name in ("prodigy", "adasmooth")),
    *(("novograd", form) for form in ("remainder16", "8bit")),
    *((name, "float32") for name in ("lars", "prodigy", "adopt", "ademamix")),
    *(("lion", form) for form in ("caution", "cautious_decay")),
    ("adafactor", "kahan"),
    ("adamw", "rows"),
    ("adamw", "tensors"),
    ("adam_mini", "float32"),
    *((name, "float32") for name in ("muon", "adamuon")),
    *(
        pytest.param(*each, marks=pytest.mark.slow)
        for each in (("adafactor", "rows"), ("muon", "8bit"), ("muon", "tensors"))
    ),
]


@pytest.mark.parametrize(("name", "form"), FEW)
def test_optimizers_follow_the_loop(name, form, request):
    assert_follows(name, form, request)


NOT_FOR_ALL = ("cautious_decay", "rows", "tensors")


def of_the_engine():
    """Names of optimizers that need no more than gradients."""
    classes = {name: hfoptim.get_optimizer_info(name).opt_class for name in hfoptim.list_optimizers()}
    return [
        name
        for name, cls in classes.items()
        if issubclass(cls, EngineOptimizer)
        and cls.curvature is None
        and not (cls.needs_loss or cls.sparse_only)
        # No kernel is generated for the one's matrices, nor for an estimate from every 11th entry; the last has a form
        # of its own.
        and name not in ("adalite", "prodigy_plus_schedule_free", "flashadamw")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form not in NOT_FOR_ALL])
@pytest.mark.parametrize("name", of_the_engine())
def test_every_optimizer_follows_the_loop(name, form, request):
    assert_follows(name, form, request)


# -- rows of every kind ----------------------------------------------------------------------------------------------


def norm_rule(grad, param, m, v, h):
    m = m + (grad - m) * h.a
    v = v + (grad * grad - v) * h.a
    update = m / (v.sqrt() + h.eps)
    return update * (param.norm() / update.norm()), m, v


def mean_rule(grad, param, last, h):
    now = last + (grad.square().mean() - last) * h.a
    return grad * (grad.abs().amax() / (now.sqrt() + h.eps)), now


def by_triton(bucket, monkeypatch):
    """A copy of the bucket, stepped by generated Triton alone."""
    out = copied(bucket)
    for mine, row in zip(out.rows, bucket.rows, strict=True):
        mine.grad = row.grad
    with monkeypatch.context() as patch:
        for name in ("loop", "foreach"):
            patch.setattr(backends.TRITON_ASKED, name, None)
        patch.setattr(trial, "problem", lambda *_: None)
        backends.TRITON_ASKED.step(out)
    return out


def test_reductions_along_rows_and_columns_follow_the_loop(monkeypatch):
    bucket = made("everything", [(33, 257), (129, 8), (2, 3, 200), (40, 128), (1030, 4)], dtype=torch.float64)
    for row in bucket.rows[-2:]:
        row.grad = torch.cat([row.grad.flatten()[:1], row.grad.flatten()])[1:].view(row.param.shape)
    assert_near(by_triton(bucket, monkeypatch), by_loop(bucket), bucket, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("tile", [(4, 1024), (32, 128), (128, 32), (1024, 4)], ids=str)
@pytest.mark.parametrize("shapes", ALL_SHAPES.values(), ids=ALL_SHAPES)
@pytest.mark.parametrize("name", ["rows", "columns", "factored", "everything"])
def test_tiles_of_any_size_give_the_same(name, shapes, tile, monkeypatch):
    monkeypatch.setattr(kernel, "tile_of", lambda *_: tile)
    bucket = made(name, shapes, dtype=torch.float64)
    if bucket.rows:
        assert_near(by_triton(bucket, monkeypatch), by_loop(bucket), bucket, 1e-12)


CODED = Storage(Format.Q8), Storage(Format.Q8, signed=False)


@pytest.mark.parametrize(
    "kept",
    [None, CODED, pytest.param((Storage(Format.Q4), Storage(Format.Q4, signed=False)), marks=pytest.mark.slow)],
    ids=str,
)
def test_unaligned_and_broken_rows_follow_the_loop_too(kept, monkeypatch):
    shapes = [(2, 1024), (2, 1024), (3, 701), (1,), (2, 2048)]
    bucket = bucket_of(
        norm_rule, shapes, dtype=torch.float32, scalars={"a": 0.3, "eps": 0.2}, kept=kept, m=zeros, v=nonnegative
    )
    odd = bucket.rows[1]
    odd.grad = torch.cat([torch.zeros(1), odd.grad.flatten()])[1:].view(shapes[1])
    assert odd.grad.data_ptr() % 16
    bucket.rows[4].grad[0, 5] = torch.nan
    ours, theirs = by_triton(bucket, monkeypatch), by_loop(bucket)
    assert ours.rows[4].param.isnan().all()
    for mine, other in zip(ours.rows[:4], theirs.rows[:4], strict=True):
        for a, b in zip(mine.tensors, other.tensors, strict=True):
            if a.dtype is torch.uint8:
                assert float((a != b).double().mean()) < 0.005
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["nearest", "kahan", "kahan_read", "remainder16", "8bit"])
def test_functions_of_matrices_are_called_between_passes(form, monkeypatch):
    given = []

    @MatrixFunction
    def cubed(stacks, eps):
        given.append([tuple(stack.shape) for stack in stacks])
        return [stack @ stack.mT @ stack + eps for stack in stacks]

    def matrix_rule(grad, param, m, h):
        m = m + (grad - m) * h.a
        update = cubed(m, h.eps)
        # What is computed of the first one is computed again after the second one.
        return cubed(update * h.a, 0.5) + update * grad, m

    rounding = Rounding.NEAREST if form == "8bit" else Rounding(form)
    dtype = torch.float32 if rounding is Rounding.NEAREST else torch.bfloat16
    kept = (Storage(Format.Q8),) if form == "8bit" else None
    shapes = [(6, 4), (4, 6), (6, 4), (4, 6), (0, 3), (2, 600, 4), (6, 4)]
    scalars = {"a": 0.3, "eps": 0.2}
    bucket = bucket_of(matrix_rule, shapes, MATRIX, dtype, scalars=scalars, rounding=rounding, kept=kept, m=zeros)
    theirs = by_loop(bucket)
    given.clear()
    monkeypatch.setattr(launch, "MATRICES", 96)
    ours = by_triton(bucket, monkeypatch)
    calls = [[(1, 2, 600, 4)], [(2, 4, 6), (2, 6, 4)], [(1, 6, 4)]]
    assert [g for g in given if g != [(1, 0, 3)]] == [call for call in calls for _ in range(2)]
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        for a, b in zip(mine.tensors, other.tensors, strict=True):
            if a.dtype is torch.uint8 and a.numel():
                assert float((a != b).double().mean()) < 0.005
            elif form != "remainder16":
                torch.testing.assert_close(a.float(), b.float(), rtol=1e-2 if form == "8bit" else 1e-5, atol=1e-5)
    if form == "remainder16":
        for mine, other in zip(ours.rows, theirs.rows, strict=True):
            exact = [storage.join_float32(row.param, row.residual) for row in (mine, other)]
            torch.testing.assert_close(*exact, rtol=1e-5, atol=1e-5)


def test_numbers_of_a_tensor_are_kept_too(monkeypatch):
    bucket = bucket_of(mean_rule, [(2, 1024), (5,), (3000,)], scalars={"a": 0.3, "eps": 0.2}, last=scalar)
    assert_near(by_triton(bucket, monkeypatch), by_loop(bucket), bucket, 1e-6)


def chained_rule(grad, param, first, second, h):
    # Each state is read before and after it is overwritten, by sums that follow each other.
    now = first + (grad.square().mean() - first) * h.a
    update = grad / (now.sqrt() + first + h.eps)
    then = second + (update.abs().amax() + now - second) * h.a
    update = update / (then + second + h.eps) * (param * update).sum()
    return update + param * (now + then) / (first + second + 1.0), now, then


@pytest.mark.parametrize("coded", [False, True])
def test_programs_that_take_runs_of_blocks_add_up_what_all_have_left(coded, monkeypatch):
    # Of more than 64 blocks a program takes several.
    shapes = [(66, 1024), (3000,), (5,), (67, 1025)]
    kept = {"kept": CODED} if coded else {}
    rule, states = (norm_rule, {"m": zeros, "v": nonnegative}) if coded else (chained_rule, {})
    states = states or {"first": scalar, "second": scalar}
    dtype = torch.float32 if coded else torch.float64
    bucket = bucket_of(rule, shapes, dtype=dtype, scalars={"a": 0.3, "eps": 0.2}, **kept, **states)
    bucket.rows[2].grad = torch.cat([bucket.rows[2].grad[:1], bucket.rows[2].grad])[1:]
    calls, real = [], launch.Memory.point

    def point(memory, addresses):
        calls.append([rest[-1] for rest in memory.rests])
        real(memory, addresses)

    monkeypatch.setattr(launch.Memory, "point", point)
    ours, theirs = by_triton(bucket, monkeypatch), by_loop(bucket)
    assert calls == [[2, 1, 1, 2]], "blocks of a program, of each tensor"
    if not coded:
        assert_near(ours, theirs, bucket, 1e-12)
        return
    for mine, other in zip(ours.rows, theirs.rows, strict=True):
        for a, b in zip(mine.tensors, other.tensors, strict=True):
            if a.dtype is torch.uint8:
                assert float((a != b).double().mean()) < 0.005
            else:
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_operation_gives_what_torch_gives(dtype, monkeypatch):
    x, y = operands(dtype)
    chosen = Rule(elementwise, ELEMENT, ELEMENTWISE_STATES)
    plan = plan_of(chosen, Decay.NONE, dtype)
    row = plan.slots([y, x, *(chosen.first(name, x, dtype) for name in chosen.state)])
    out = by_triton(Bucket(plan, [row], {"lr": 0.0}), monkeypatch)
    wrong = {}
    for (name, fn), (mine,) in zip(ELEMENTWISE.items(), out.rows[0].states, strict=True):
        if bad := differing(name, mine, x, y, units=64):
            wrong[name] = [(float(x[i]), float(y[i]), float(mine[i]), float(fn(x, y)[i])) for i in bad[:4]]
    assert not wrong


def sgd_rule(grad, param, h):
    return (grad,)


@pytest.mark.parametrize("rounding", [rounding for rounding in Rounding if rounding is not Rounding.NEAREST])
def test_a_nan_stays_one_whatever_its_bits(rounding, monkeypatch):
    bucket = bucket_of(sgd_rule, [(64,)], ELEMENT, torch.bfloat16, grad_dtype=torch.float32, rounding=rounding)
    # Its payload is all in the bits that bfloat16 has not.
    bucket.rows[0].grad = torch.full((64,), 0x7F800001, dtype=torch.int32).view(torch.float32)
    assert by_triton(bucket, monkeypatch).rows[0].param.isnan().all()


@pytest.mark.parametrize("form", ["stochastic", "8bit"])
def test_entries_beyond_two_to_the_31(form, monkeypatch):
    """By addresses: the memory in front of what the blocks touch is not there."""
    rounding = Rounding.STOCHASTIC if form == "stochastic" else Rounding.NEAREST
    dtype = torch.bfloat16 if form == "stochastic" else torch.float32
    kept = (Storage(Format.Q8, stochastic=True),) if form == "8bit" else None
    far, count = (1 << 31) + (1 << 20), 4096 + (0 if form == "8bit" else 100)

    def rule(grad, param, m, h):
        return m + grad, m + grad

    bucket = bucket_of(rule, [(count,)], ELEMENT, dtype, rounding=rounding, kept=kept, m=zeros)
    ours, theirs = copied(bucket), copied(bucket)
    plan, row = bucket.plan, theirs.rows[0]
    weight, state = storage.decode(plan, row)
    moved = state[0].float() + row.grad.float()
    storage.encode(plan, row, weight.float() - 0.1 * moved, [moved], bucket.seeds[0], far)

    class Far(launch.Memory):
        def __init__(self, source, shapes, device):
            super().__init__(source, shapes, device)
            entries, _, blocks, line, vector, height, columns, tiles, run = self.rests[0]
            # The first block that is there has a number of its own: the others are counted from far below.
            first = (1 << 64) - far // source.block
            more = line, vector, height, columns and far + columns, tiles, run
            self.rests = [(far + entries, first, far // source.block + blocks, *more)]

        def point(self, addresses):
            tensors = ours.rows[0].tensors
            spans = [1, 1, *([1, 256] if form == "8bit" else [1])]
            steps = [far // span * t.element_size() for t, span in zip(tensors, spans, strict=True)]
            super().point([a - step for a, step in zip(addresses, steps, strict=True)])

    monkeypatch.setattr(launch, "Memory", Far)
    monkeypatch.setattr(trial, "problem", lambda *_: None)
    backends.TRITON_ASKED.step(ours)
    for a, b in zip(ours.rows[0].tensors, row.tensors, strict=True):
        assert torch.equal(a, b)


# -- launches and what is sent ---------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch):
    """The names of the functions that were launched."""
    names = []
    real = launch.start

    def start(function, grid, arguments, warps):
        names.append(getattr(function, "__name__", None) or function.fn.__name__)
        real(function, grid, arguments, warps)

    monkeypatch.setattr(launch, "start", start)
    return names


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamw", {}, ["pass0"]),
        ("adamw", {"caution": True}, ["pass0", "pass1"]),
        ("lamb", {"max_grad_norm": None, "weight_decay": 0.1}, ["pass0", "pass1"]),
        ("lamb", {"weight_decay": 0.1}, ["pass0", "numbers", "pass0", "pass1"]),
        ("lars", {"weight_decay": 0.1}, ["pass0", "pass1"]),
        ("novograd", {}, ["pass0", "pass1"]),
        ("prodigy", {}, ["numbers", "pass0", "numbers", "pass0"]),
    ],
    ids=str,
)
def test_a_step_takes_so_many_launches_whatever_the_number_of_tensors(name, options, expected, on_cpus, started):
    params = [torch.nn.Parameter(torch.empty(size, 70, device="meta")) for size in range(2, 150)]
    optimizer = hfoptim.create_optimizer_v2(params, name, lr=0.1 if name != "prodigy" else 1.0, fused=True, **options)
    for _ in range(2):
        started.clear()
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer.step()
    assert started == expected


@pytest.mark.parametrize("name", ["adafactor", "adam_mini", "lamb", "novograd", "adopt"])
def test_nothing_is_read_or_kept_for_nobody(name, on_cpus, monkeypatch):
    monkeypatch.setattr(kernel, "_kernels", {})
    params = [torch.nn.Parameter(torch.empty(size, 70, device="meta")) for size in (1, 40)]
    optimizer = hfoptim.create_optimizer_v2(params, name, lr=0.1, weight_decay=0.1, fused=True)
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()
    texts = [made.source.text for _, made in kernel._kernels.values()]
    assert texts
    for text in texts:
        kept, read = (set(re.findall(rf"tl.{verb}\(own \+ .*? \* \d+ \+ (\d+)", text)) for verb in ("store", "load"))
        assert kept == read
        for function in text.split("@triton.jit")[1:]:
            for value in re.findall(r"^ +(v\d+) = tl.load", function, re.M):
                uses = re.sub(rf"{value} = {value}\.to\(.*", "", function)
                assert len(re.findall(rf"\b{value}\b", uses)) > 1, (value, function)


def test_what_has_not_changed_is_not_sent_again(on_cpus, monkeypatch):
    sent = []
    real = launch.upload

    def upload(numbers, dtype, to):
        sent.append(dtype)
        real(numbers, dtype, to)

    param = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = hfoptim.AdamW([param], lr=0.1, fused=True)
    param.grad = torch.ones_like(param)
    optimizer.step()
    monkeypatch.setattr(launch, "upload", upload)
    optimizer.step()
    assert sent == [torch.float64], "numbers that change in every step, once; no addresses"
    sent.clear()
    param.grad = torch.ones_like(param)
    before = param.detach().clone()
    optimizer.step()
    assert sorted(map(str, sent)) == ["torch.float64", "torch.int64"]
    assert (param < before).all()


def test_what_is_kept_on_the_device_is_bounded(on_cpus, monkeypatch):
    monkeypatch.setattr(launch, "KEPT_CALLS", 3)
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(6)]
    for param in params:
        param.grad = torch.ones_like(param)
        hfoptim.SGD([param], lr=0.1, fused=True).step()
        assert len(launch._kept) <= 3
    assert all(torch.allclose(param, torch.full((5,), 0.9)) for param in params)


# -- numbers on the device -------------------------------------------------------------------------------------------


def several(x, y, n):
    root = (x.square() + n).sqrt()
    return {
        "root": root,
        "chosen": torch.where(x > y, torch.minimum(root, x), 0.5) * (n / y),
        "larger": x > y,
        "clipped": n / y.clamp(min=n),
        "infinite": x * float("inf"),
    }


@pytest.fixture
def no_functions(monkeypatch):
    monkeypatch.setattr(scalars, "_functions", {})
    scalars._tell.cache_clear()
    yield
    scalars._tell.cache_clear()


def test_numbers_on_the_device_are_worked_out_in_one_launch(no_functions, started):
    for n in (0.25, 1.0, 2.0, 0.25):  # 1 and 2 are among the numbers of the code, too
        x, y = torch.tensor(3.0), torch.tensor(-1.5, dtype=torch.float64)
        arithmetic, known = Arithmetic(), bool(scalars._functions)
        found = several(arithmetic.of(x), arithmetic.of(y), n)
        started.clear()
        arithmetic.resolve(
            [(found, torch.float64), (other := {"sum": arithmetic.of(x) + arithmetic.of(y)}, torch.float32)]
        )
        assert started == ["numbers"] * (1 if known else 2), "once more where it is tried"
        assert other["sum"].dtype is torch.float32
        assert float(other["sum"]) == 1.5
        for name, value in several(x.double(), y, n).items():
            torch.testing.assert_close(found[name], value.double(), rtol=1e-12, atol=0.0)
    assert len(scalars._functions) == 1, "the same function whatever the numbers"


def test_numbers_that_a_kernel_gets_wrong_are_torchs(no_functions, monkeypatch):
    monkeypatch.setattr(scalars, "load", lambda text: kernel.load(text.replace("rooted", "tl.exp")))
    for _ in range(2):
        x = torch.tensor(3.0)
        arithmetic = Arithmetic()
        found = {"root": arithmetic.of(x).sqrt()}
        if not scalars._functions:
            with pytest.warns(UserWarning, match="gave other numbers than torch on cpu"):
                arithmetic.resolve([(found, torch.float64)])
        else:
            arithmetic.resolve([(found, torch.float64)])
        assert float(found["root"]) == 3.0**0.5


def test_sums_of_kernels_and_of_the_loop_are_added_up(on_cpus):
    ends = []
    for fused in (True, False):
        g = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(40, 70, generator=g)) for _ in range(3)]
        options = {"fused": True} if fused else {"foreach": False}
        groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
        with pytest.MonkeyPatch.context() as patch:
            if not fused:
                patch.setattr(backends, "choose", lambda *_: (backends.LOOP,))
            optimizer = hfoptim.Lamb(groups, lr=0.1, max_grad_norm=0.5, **options)
            for _ in range(2):
                for param in params:
                    param.grad = torch.randn(40, 70, generator=g)
                params[1].grad = torch.randn(70, 40, generator=g).t()  # no kernel walks through that
                optimizer.step()
        ends.append(params)
    for mine, other in zip(*ends, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


class Halved(hfoptim.SGD):
    """SGD with a step size that half of a sum decides; in a way that no symbol goes."""

    branch = False
    run_state = RunState(
        {"size": 1.0}, lambda state, totals, group: {"size": Halved.halved(totals["total"])}, ("total",)
    )

    @staticmethod
    def halved(total):
        Halved.seen = type(total)
        return total / 2 if not Halved.branch or total > 0 else total

    def rule_for(self, param, group):
        return HALVED


HALVED = Rule(
    sgd_rule,
    ELEMENT,
    {},
    lambda t, group, total: {"lr": group["size"] + total},
    Probe(lambda grad, param, h: {"total": grad.sum() * h.one}, lambda t, group: {"one": group["size"] * 0.0 + 1.0}),
)


@pytest.mark.parametrize("branch", [False, True])
def test_what_cannot_be_traced_is_worked_out_by_torch(branch, on_cpus, monkeypatch):
    monkeypatch.setattr(Halved, "branch", branch)
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    optimizer = Halved([{"params": params[:1]}, {"params": params[1:]}], lr=1.0, fused=True)
    for size in (1.0, 2.0):
        for param in params:
            param.grad = torch.full_like(param, size)
        optimizer.step()
        assert Halved.seen is (torch.Tensor if branch else Symbol)
        assert [float(group["size"]) for group in optimizer.param_groups] == [3.5 * size] * 2
    assert torch.equal(params[0], torch.full((3,), -10.5 - 2 * 21.0))


# -- the trial -------------------------------------------------------------------------------------------------------


@pytest.fixture
def untried(on_cpus, monkeypatch):
    monkeypatch.setattr(trial, "_found", {})
    compiled.warn_uncompiled.cache_clear()
    yield
    compiled.warn_uncompiled.cache_clear()


def broken(text):
    """A way to make kernels other than they should be."""

    def load(source, real=kernel.load.__wrapped__):
        return real(text(source))

    return load


BREAKS = {
    "the tail": lambda s: s.replace("live = at < left", "live = at < left - 1"),
    "a sign": lambda s: s.replace("tl.store(p0 + at, ", "tl.store(p0 + at, -", 1),
    "does not compile": lambda s: s.replace("block = tl.program_id(0)", "block = tl.no_such_thing(0)"),
}


@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("asked", [True, False])
def test_a_kernel_that_fails_its_trial_steps_nothing(what, asked, untried, monkeypatch):
    monkeypatch.setattr(kernel, "load", broken(BREAKS[what]))
    monkeypatch.setattr(kernel, "_kernels", {})
    chosen = backends.TRITON_ASKED if asked else backends.TRITON
    monkeypatch.setattr(backends, "choose", lambda *_: (backends.MATRIX, chosen))
    param = torch.nn.Parameter(torch.ones(70, 70))
    optimizer = hfoptim.AdamW([param], lr=0.1, weight_decay=0.1)
    param.grad = torch.ones_like(param)
    if asked:
        with pytest.raises(RuntimeError, match="Triton's kernel for the step of the rule"):
            optimizer.step()
        assert torch.equal(param, torch.ones(70, 70))
        return
    with pytest.warns(UserWarning, match="without compiled kernels.*Triton's kernel"):
        optimizer.step()
    twin = torch.nn.Parameter(torch.ones(70, 70))
    other = hfoptim.AdamW([twin], lr=0.1, weight_decay=0.1, foreach=True)
    twin.grad = torch.ones_like(twin)
    other.step()
    assert torch.equal(param, twin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_a_probe_is_tried_as_well(untried, monkeypatch):
    monkeypatch.setattr(kernel, "load", broken(lambda s: s.replace("tl.sum(v", "2 * tl.sum(v") if "total" in s else s))
    monkeypatch.setattr(kernel, "_kernels", {})
    param = torch.nn.Parameter(torch.ones(70, 70))
    optimizer = hfoptim.create_optimizer_v2([param], "lamb", lr=0.1, fused=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="the probe of the rule"):
        optimizer.step()


def test_rows_with_gaps_go_to_the_loop(untried):
    base = torch.ones(70, 140)
    param = torch.nn.Parameter(base[:, ::2])
    optimizer = hfoptim.AdamW([param], lr=0.1, fused=True)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert (param < 1).all()
    assert (base[:, 1::2] == 1).all()
