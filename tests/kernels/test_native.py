"""Generated kernels compute what the loop does: over shapes, threads, dtypes; and their sums are accurate."""

from __future__ import annotations

import math

import pytest
import torch
from rows import assert_near, bucket_of, by_kernel, by_loop

from hfoptim.engine import backends, storage
from hfoptim.engine.codegen import build, native
from hfoptim.engine.codegen.cpp.writer import GROUP
from hfoptim.engine.codegen.trace import Untraceable
from hfoptim.engine.plan import Decay, plan_of
from hfoptim.engine.rule import (
    ELEMENT,
    TENSOR,
    Probe,
    Rule,
    State,
    ema,
    hyper_type,
    rms,
    scalar,
    zeros,
    zeros_without,
)

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=f"needs {build.missing()}")

# Of what sums in another order may differ by.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def elements(g, p, m, v, h):
    m, v = ema(m, g, 0.1), ema(v, g * g, 0.01)
    return torch.where(m * g > 0, m, p.clamp(min=-0.5)) / (v.sqrt() + 1e-8), m, v


def totals(g, p, m, h):
    m = ema(m, g, 0.1)
    size = rms(p) / (m.norm() + 1e-8)
    return m * torch.where(size > 1.0, 1.0, size), m


def by_rows(g, p, m, v, h):
    v = ema(v, g.square().mean(-1, keepdim=True), 0.1)
    m = ema(m, g, 0.1)
    return m / (v.sqrt() + g.norm(dim=-1, keepdim=True)), m, v


def by_columns(g, p, m, v, h):
    v = ema(v, (g * g).mean(-2), 0.1)
    m = ema(m, g / (v.sqrt().unsqueeze(-2) + 1e-8), 0.1)
    return m + p * (g * p).sum(-2, keepdim=True), m, v


def factored(g, p, row, column, size, h):
    squared = g * g
    row, column = ema(row, squared.mean(-1), 0.1), ema(column, squared.mean(-2), 0.1)
    factor = (row.mean(-1, keepdim=True) / row).sqrt().unsqueeze(-1)
    update = g * factor / column.sqrt().unsqueeze(-2)
    return update / rms(update).clamp(min=1.0) * rms(p), row, column, rms(p)


def everything(g, p, m, row, column, size, h):
    """Sums of sums, over three passes; state that is read where it is already overwritten."""
    total = g.mean(-1).square().mean() + size
    centered = g - g.mean(-1, keepdim=True) - g.mean(-2, keepdim=True) * total
    new = m + centered / (1.0 + centered.square().mean(-1, keepdim=True).sqrt())
    update = new * m.abs().amax(-1, keepdim=True) / (1.0 + new.square().mean())
    return update + column.unsqueeze(-2), new, row + new.mean(-1), column + g.mean(-2), total


def largest(g, p, m, h):
    """Largest entries along rows, columns and the tensor."""
    size = g.abs()
    m = ema(m, g / (size.amax(-1, keepdim=True) + size.amax(-2, keepdim=True)), 0.1)
    return m / size.amax(), m


def positive_rows(param, dtype):
    return torch.ones(*param.shape[:-1], 1, dtype=dtype)


# name -> (rule, its states, fewest dimensions)
RULES = {
    "elements": (elements, {"m": zeros, "v": zeros}, 0),
    "totals": (totals, {"m": zeros}, 0),
    "rows": (by_rows, {"m": zeros, "v": State(positive_rows)}, 1),
    "columns": (by_columns, {"m": zeros, "v": zeros_without(-2)}, 2),
    "largest": (largest, {"m": zeros}, 2),
    "factored": (factored, {"row": zeros_without(-1), "column": zeros_without(-2), "size": scalar}, 2),
    "everything": (
        everything,
        {"m": zeros, "row": zeros_without(-1), "column": zeros_without(-2), "size": scalar},
        2,
    ),
}
every_rule = pytest.mark.parametrize("name", RULES)
SHAPES = {
    "vectors": [(1,), (2,), (7,), (64,), (4095,), (4096,), (4097,), (9001,)],
    "matrices": [(2, 2), (3, 5), (17, 19), (255, 3), (256, 4), (257, 5), (600, 2), (31, 33)],
    "long rows": [(2, 4096), (3, 4097), (5, 9001), (2, 12289)],
    "many rows": [(20011, 3), (5000, 2)],
    "short rows": [(300, 4), (1031, 8), (257, 16), (129, 32), (100, 64), (100, 65), (77, 63), (513, 5), (1, 8), (2, 8)],
    "stacks": [(7, 5, 9), (2, 300, 5), (2, 3, 4100), (3, 2, 2), (9, 260, 7)],
    "with ones": [(1, 9), (9, 1), (1, 4100), (5, 1, 9), (1, 5, 9)],
    "four dimensions": [(3, 2, 4, 5), (4, 3, 1, 1)],
}


def made(name, shapes, **options):
    """A bucket for one of the rules, with those of the shapes that it has a kernel for."""
    fn, states, ndim = RULES[name]
    shapes = [shape for shape in shapes if len(shape) >= ndim]
    if name == "everything":
        # The sum of a single row or column is none: a value of another kind, which the next one cannot be summed from.
        shapes = [shape for shape in shapes if min(shape[-2:]) > 1 and len(shape) < 4]
    scope = ELEMENT if name == "elements" else TENSOR
    return bucket_of(fn, shapes, scope, **{**options, **states})


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@every_rule
def test_a_kernel_computes_what_the_loop_does(name, shapes, monkeypatch):
    bucket = made(name, shapes, dtype=torch.float64)
    if bucket.rows:
        assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", ["elements", "everything"])
@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
def test_in_other_dtypes(name, dtype, grad_dtype, monkeypatch):
    bucket = made(name, [(130, 67), (5, 4097)], dtype=dtype, grad_dtype=grad_dtype)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{form}-{name}", marks=[] if form in forms else pytest.mark.slow)
        for name, forms in {"rows": ["kahan"], "everything": ["kahan"], "factored": ["nearest"]}.items()
        for form, options in {"nearest": {}, "kahan": {"rounding": storage.Rounding.KAHAN}}.items()
    ],
)
def test_short_rows_in_bfloat16(name, options, monkeypatch):
    bucket = made(name, [(600, 8), (77, 5)], dtype=torch.bfloat16, **options)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("name", ["elements", "columns", "factored"])
def test_weights_are_read_with_kahans_term(name, monkeypatch):
    bucket = made(name, [(77, 5), (31, 300)], dtype=torch.bfloat16, rounding=storage.Rounding.KAHAN_READ)
    for row in bucket.rows:
        row.residual.copy_(row.param.flip(0) * 0.5)  # far more than rounding leaves, so that nothing hides it
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("name", ["rows", "columns"])
def test_short_rows_are_summed_as_long_ones_are(name, monkeypatch):
    """One row more or less in a thread's share, or a width more, is no other arithmetic: float32 stays accurate."""
    bucket = made(name, [(4096, 8), (4096, 64), (4096, 65)], dtype=torch.float32)
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    for threads in (1, 2, 3):
        assert_near(by_kernel(bucket, monkeypatch, threads), by_loop(bucket), bucket, 1e-6)


@pytest.mark.parametrize("threads", [2, 3, 8])
@every_rule
def test_threads_share_the_work(name, threads, monkeypatch):
    # More batches than threads and fewer, rows of one thread and of several, tensors smaller than a thread's share.
    shapes = [(7, 5), (300, 40), (2, 9001), (20011, 3), (9, 26, 7), (2, 300, 5), (5, 3, 4100), (2, 3)]
    bucket = made(name, shapes, dtype=torch.float64)
    alone = by_kernel(bucket, monkeypatch)
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    together = by_kernel(bucket, monkeypatch, threads)
    assert_near(together, alone, bucket, TOLERANCE[torch.float64])
    assert_near(together, by_loop(bucket), bucket, TOLERANCE[torch.float64])


@pytest.mark.parametrize("threads", [1, 2])
@every_rule
def test_a_tensor_that_threads_share_evenly_and_one_of_one_entry(name, threads, monkeypatch):
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    for shape in [(2, 4096), (4, 4096), (2, 2, 4096), (4096,), (1,), (2,)]:
        bucket = made(name, [shape], dtype=torch.float64)
        if bucket.rows:
            assert_near(by_kernel(bucket, monkeypatch, threads), by_loop(bucket), bucket, TOLERANCE[torch.float64])


@every_rule
def test_many_tensors_that_go_through_the_passes_in_groups(name, monkeypatch):
    shapes = [(37, 29)] * 400 + [(300, 999)] + [(37, 28)] * 3
    bucket = made(name, shapes)
    assert sum(row.param.numel() for row in bucket.rows) > 2 * GROUP
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float32])


def test_one_function_call_steps_tensors_of_many_shapes(monkeypatch):
    calls = []
    run = native.Call.run
    monkeypatch.setattr(native.Call, "run", lambda call, *given: calls.append(len(call.rows)) or run(call, *given))
    bucket = made("elements", [(3,), (4, 5), (2, 2, 2), (), (1,), (1, 7)])
    by_kernel(bucket, monkeypatch)
    assert calls == [6]


@pytest.mark.parametrize("numel", [0, 1])
@pytest.mark.parametrize("threads", [1, 2])
def test_tensors_without_entries(numel, threads, monkeypatch):
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    for name in ("elements", "totals"):
        bucket = made(name, [(0,), (3,), (0, 5), (numel,), (2, 0, 3)])
        ours, theirs = by_kernel(bucket, monkeypatch, threads), by_loop(bucket)
        for mine, other, before in zip(ours.rows, theirs.rows, bucket.rows, strict=True):
            if before.param.numel():
                for a, b in zip(mine.tensors, other.tensors, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# -- memory ----------------------------------------------------------------------------------------------------------


def guarded(tensor, fence=64):
    """The tensor in the midst of a larger piece of memory, at an odd place of it; and the piece."""
    whole = torch.full((tensor.numel() + 2 * fence,), 77.0, dtype=tensor.dtype)
    inner = whole[fence - 1 : fence - 1 + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner, whole


@pytest.mark.parametrize("threads", [1, 2])
@every_rule
def test_nothing_is_written_but_the_rows_tensors_and_no_gradient(name, threads, monkeypatch):
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    bucket = made(name, [(5, 67), (3, 4099), (2, 7, 9)], dtype=torch.float64)
    wholes = []
    for index, row in enumerate(bucket.rows):
        pairs = [guarded(t) for t in row.tensors]
        bucket.rows[index] = bucket.plan.slots(inner for inner, _ in pairs)
        wholes += [(inner.numel(), whole) for inner, whole in pairs]
    expected = by_loop(bucket)
    grads = [row.grad.clone() for row in bucket.rows]
    # In place, where the fences are.
    monkeypatch.setattr("rows.copied", lambda bucket: bucket)
    by_kernel(bucket, monkeypatch, threads)
    for row, other, grad in zip(bucket.rows, expected.rows, grads, strict=True):
        assert torch.equal(row.grad, grad)
        for mine, theirs in zip(row.tensors, other.tensors, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    for numel, whole in wholes:
        assert (whole[:63] == 77).all()
        assert (whole[63 + numel :] == 77).all()


@pytest.mark.parametrize(
    "state", [zeros, zeros_without(-1), zeros_without(-2), scalar], ids=["full", "row", "column", "one"]
)
def test_states_may_change_places(state, monkeypatch):
    bucket = bucket_of(lambda g, p, m, n, h: (g, n, m), [(5, 9)], m=state, n=state)
    row = by_kernel(bucket, monkeypatch).rows[0]
    assert torch.equal(row.kept[0], bucket.rows[0].kept[1])
    assert torch.equal(row.kept[1], bucket.rows[0].kept[0])


def test_a_state_may_become_the_old_parameter(monkeypatch):
    bucket = bucket_of(lambda g, p, m, h: (g * g.mean(), p), [(5, 9)], m=zeros)
    row = by_kernel(bucket, monkeypatch).rows[0]
    assert torch.equal(row.kept[0], bucket.rows[0].param)


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], -1)[..., 0],
    ],
    ids=["transposed", "gaps"],
)
def test_other_layouts_are_stepped_as_they_are_or_left_to_the_loop(layout):
    for name in ("elements", "totals", "rows"):
        bucket = made(name, [(31, 17)], dtype=torch.float64)
        bucket.rows[0] = bucket.rows[0].map(lambda t: layout(t) if t.shape == (31, 17) else t)
        expected = by_loop(bucket)
        rows = [row.map(lambda t: t.as_strided(t.shape, t.stride())) for row in bucket.rows]
        backends.KERNELS.step(bucket)
        for mine, other, same in zip(
            *(row.tensors for row in (bucket.rows[0], expected.rows[0], rows[0])), strict=True
        ):
            assert mine.data_ptr() == same.data_ptr()
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_a_dense_layout_that_all_share_needs_no_loop(monkeypatch):
    for name in ("elements", "totals"):
        bucket = made(name, [(31, 17)], dtype=torch.float64)
        bucket.rows[0] = bucket.rows[0].map(lambda t: t.t().contiguous().t())
        assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dim", [-1, -2, None])
def test_an_old_state_is_still_there_in_later_passes(dim, monkeypatch):
    def fn(g, p, m, h):
        old, new = (m, g.mean()) if dim is None else (m.unsqueeze(dim), g.mean(dim))
        return g * old * (g * new.mean() if dim is None else g * new.unsqueeze(dim)).square().mean(), new

    state = scalar if dim is None else zeros_without(dim)
    bucket = bucket_of(fn, [(5, 9)], dtype=torch.float64, m=state)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(10_000_000,), (10, 1_000_000), (1_000_000, 10)], ids=str)
def test_sums_of_ten_million_numbers_are_accurate(shape, threads, monkeypatch):
    def whole(g, p, total, h):
        return g * 0.0, g.sum() + 0.0 * total

    def matrix(g, p, row, column, total, h):
        return g * 0.0, g.sum(-1) + 0.0 * row, g.sum(-2) + 0.0 * column, g.sum() + 0.0 * total

    if len(shape) == 1:
        bucket = bucket_of(whole, [(1,)], total=scalar)
    else:
        states = {"row": zeros_without(-1), "column": zeros_without(-2), "total": scalar}
        bucket = bucket_of(matrix, [(1, 1)], **states)
    # Uniform in [0, 1): a running sum in float32 would be off by percents.
    grad = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    small = [torch.zeros(shape[:1]), torch.zeros(shape[1:])] if len(shape) == 2 else []
    bucket.rows[0] = bucket.plan.slots([torch.zeros(shape), grad, *small, torch.zeros(())])
    row = by_kernel(bucket, monkeypatch, threads).rows[0]
    exact = grad.double()
    torch.testing.assert_close(row.kept[-1].double(), exact.sum(), rtol=1e-6, atol=0.0)
    if len(shape) == 2:
        torch.testing.assert_close(row.kept[0].double(), exact.sum(1), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(row.kept[1].double(), exact.sum(0), rtol=1e-6, atol=0.0)


def test_scalars_are_computed_in_double_precision(monkeypatch):
    # 1 - b rounded to float32 first would be off by 1e-5.
    bucket = bucket_of(lambda g, p, h: (g * ((1.0 - h.b) * 1e4),), [(100,)], scalars={"b": 0.9999}, scope=ELEMENT)
    row = by_kernel(bucket, monkeypatch).rows[0]
    grad = bucket.rows[0].grad.double()
    torch.testing.assert_close(
        row.param.double(), bucket.rows[0].param.double() - 0.1 * grad * ((1 - 0.9999) * 1e4), rtol=1e-6, atol=1e-7
    )


def test_every_operation_computes_what_torch_does(monkeypatch):
    def fn(g, p, m, h):
        a, small = g.abs() + 0.1, g.clamp(min=-3.0, max=3.0)
        out = a.sqrt() + a.rsqrt() - a.reciprocal() + small.square() - p.sign() + small.exp() + a.log() + p.tanh()
        out = out + a**0.5 + a**1.5 + a**h.power + 2.0**small - p**2 + p**3
        out = out + torch.where((g > p) & ~(g >= 1.0) | (p <= -1.0), 1.0, g) + ((p < 0.5) | (p == g)).to(torch.float64)
        out = out + p.maximum(g) * p.minimum(g) + (p != g).to(torch.float64) + small.lerp(p, h.power) + 1.0 / a
        out = out + torch.where((1.0 / (g - g)).isfinite(), 5.0, 6.0) + (2.0 - p) * h.power + (-g) * (h.power > 0.0)
        return out, g.to(torch.bfloat16).to(torch.float64) + g.to(torch.float16).to(torch.float64) - m

    for dtype in (torch.float64, torch.float32):
        bucket = bucket_of(fn, [(1000,)], ELEMENT, dtype=dtype, scalars={"power": 0.7}, m=zeros)
        assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[dtype] / 10)


def test_a_tensors_own_numbers_go_through_every_operation(monkeypatch):
    def fn(g, p, size, h):
        s = g.norm()
        chosen = torch.where((s > h.power) & ~(s >= 1e9), s.clamp(max=2.0), -s)
        return g * (chosen + s.sqrt().tanh() + s.log().exp() - s.sign() + s**1.5 + (s != 0).to(torch.float64)), chosen

    bucket = bucket_of(fn, [(10,), (7, 5)], dtype=torch.float64, scalars={"power": 0.7}, size=scalar)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dim", [-1, -2, (-2, -1)], ids=["row", "column", "one"])
def test_comparisons_are_handed_from_pass_to_pass(dim, monkeypatch):
    def fn(g, p, h):
        mean = g.mean(dim, keepdim=True)
        first, total = mean > 0.0, (g * mean).square().mean()
        both = first & ~(mean * total > 0.05) | (mean * total < -0.1)
        return (torch.where(both, g, p) * first * total,)

    bucket = bucket_of(fn, [(37, 64), (4, 5, 7)], dtype=torch.float64)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["elements", "totals", "rows", "columns", "factored"])
def test_what_is_not_finite_spreads_as_in_the_loop(name, bad, monkeypatch):
    bucket = made(name, [(31, 17)], dtype=torch.float64)
    bucket.rows[0].grad[3, 5] = bad
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    for a, b in zip(mine.rows[0].tensors, other.rows[0].tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("place", [0, 1], ids=["param", "grad"])
def test_the_larger_and_the_smaller_of_nan_and_a_number_are_nan(place, monkeypatch):
    bucket = bucket_of(lambda g, p, m, h: (g.maximum(p), g.minimum(p)), [(64,)], ELEMENT, m=zeros)
    bucket.rows[0].tensors[place][5] = math.nan
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert mine.rows[0].kept[0][5].isnan()
    for a, b in zip(mine.rows[0].tensors, other.rows[0].tensors, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_subnormal_numbers_are_not_flushed(monkeypatch):
    bucket = bucket_of(lambda g, p, m, h: (g, m * 0.5), [(64,)], ELEMENT, m=zeros)
    bucket.rows[0].kept[0].fill_(2.0**-140)
    assert (by_kernel(bucket, monkeypatch).rows[0].kept[0] == 2.0**-141).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_to_the_nearest_ties_to_even(dtype, monkeypatch):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    ties = (bits[:-1] + bits[1:]) / 2
    values = torch.cat([bits, ties, ties.nextafter(torch.tensor(9e9)), ties.nextafter(torch.tensor(-9e9))])
    values = torch.cat([values, torch.tensor([math.inf, -math.inf, math.nan, 3.4e38, 65519.0, 65520.0, 1e-30])])
    bucket = bucket_of(lambda g, p, h: (-g,), [values.shape], ELEMENT, dtype=dtype, grad_dtype=torch.float32)
    bucket.scalars["lr"] = 1.0
    bucket.rows[0].param.zero_()
    bucket.rows[0].grad.copy_(values)
    got = by_kernel(bucket, monkeypatch).rows[0].param
    torch.testing.assert_close(got, values.to(dtype), rtol=0.0, atol=0.0, equal_nan=True)


# -- states of other shapes ------------------------------------------------------------------------------------------


def test_a_rule_that_sees_blocks(monkeypatch):
    def fn(g, p, m, v, h):
        v = ema(v, g.square().mean(-1, keepdim=True), 0.1)
        return g / v.sqrt(), m + g, v

    per_block = State(lambda param, dtype: torch.zeros(param.numel() // 6, 1, dtype=dtype))
    shapes = [(6, 4), (12, 5), (18, 7, 3), (6,)]
    bucket = bucket_of(
        fn, shapes, dtype=torch.float64, shape=lambda shape: (math.prod(shape) // 6, 6), m=zeros, v=per_block
    )
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


def test_a_square_matrix_tells_its_rows_from_its_columns(monkeypatch):
    def fn(g, p, row, column, h):
        row, column = row + g.mean(-1), column + g.square().mean(-2)
        return g * row.unsqueeze(-1) - p * column.unsqueeze(-2), row, column

    states = {"row": zeros_without(-1), "column": zeros_without(-2)}
    bucket = bucket_of(fn, [(9, 9), (5, 5, 5), (64, 64)], dtype=torch.float64, **states)
    assert_near(by_kernel(bucket, monkeypatch), by_loop(bucket), bucket, TOLERANCE[torch.float64])


def test_a_state_without_dimensions_of_the_parameter_has_no_kernel():
    def fn(g, p, half, h):
        return g, half + g.flatten()[::2]

    halves = State(lambda param, dtype: torch.zeros(param.numel() // 2, dtype=dtype))
    bucket = bucket_of(fn, [(8,), (4, 4)], half=halves)
    expected = by_loop(bucket)
    with pytest.raises(Untraceable, match="state"):
        native.kernel(bucket.plan, ("lr",), bucket.rows[0])
    with pytest.warns(UserWarning, match="no kernel is generated for the rule fn: .*state"):
        backends.KERNELS.step(bucket)
    assert all(
        torch.equal(a, b)
        for mine, other in zip(bucket.rows, expected.rows, strict=True)
        for a, b in zip(mine.tensors, other.tensors, strict=True)
    )


def test_an_element_wise_rule_with_smaller_state_has_no_kernel():
    # Its kernel would take the one number for as many as the parameter has.
    bucket = bucket_of(lambda g, p, size, h: (g * size, None), [(5, 7), ()], ELEMENT, size=scalar)
    expected = by_loop(bucket)
    for row in bucket.rows:
        with pytest.raises(Untraceable, match="state of another shape"):
            native.kernel(bucket.plan, ("lr",), row)
    with pytest.warns(UserWarning, match="no kernel is generated for the rule"):
        backends.KERNELS.step(bucket)
    assert all(torch.equal(mine.param, other.param) for mine, other in zip(bucket.rows, expected.rows, strict=True))


# -- how many kernels ------------------------------------------------------------------------------------------------


def test_one_kernel_for_all_shapes_of_an_element_wise_rule(monkeypatch):
    bucket = made("elements", [(3,)])
    by_kernel(bucket, monkeypatch)
    before = native.compiled()
    for shapes in SHAPES.values():
        other = made("elements", shapes)
        other.plan = bucket.plan
        by_kernel(other, monkeypatch)
    assert native.compiled() == before


def test_a_kernel_for_each_dtype_and_each_pattern_of_ones(monkeypatch):
    bucket = made("rows", [(3, 5)])
    kernels = [native.kernel(bucket.plan, ("lr",), row) for row in bucket.rows]

    def another(*shape, dtype=torch.float32):
        other = made("rows", [shape], dtype=dtype)
        return native.kernel(bucket.plan, ("lr",), other.rows[0])

    assert another(900, 4100) is kernels[0]
    assert another(900, 4100, dtype=torch.bfloat16) is not kernels[0]
    assert another(9, 1) is not kernels[0]
    assert another(2, 3, 5) is not kernels[0]


# -- probes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_a_probe_hands_back_its_sums_over_all_tensors(threads, monkeypatch):
    def sums(g, p, m, size, h):
        return {"dot": (g * (m - p)).sum() * h.weight, "largest": m.abs().sum(), "sizes": size * 2.0, "lr": h.lr * 1.0}

    states = {"m": zeros, "size": scalar}
    rule = Rule(lambda g, p, m, size, h: (g, m, size), TENSOR, states, probe=Probe(sums))
    plan = plan_of(rule, Decay.NONE, torch.float64)
    bucket = bucket_of(rule.fn, [(31, 7), (5,), (20, 3000), (1,), (2, 1)], dtype=torch.float64, **states)
    scalars = {"lr": 0.1, "weight": 3.0}
    calls = {}
    for row in bucket.rows:
        kernel = native.kernel(plan, tuple(scalars), row, sums)
        assert kernel.results == ("dot", "largest", "sizes", "lr")
        calls.setdefault(id(kernel.step), native.Call(kernel, None)).add(kernel, row, 0)
    before = [row.map(torch.clone) for row in bucket.rows]
    found = dict.fromkeys(("dot", "largest", "sizes", "lr"), 0.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    for call in calls.values():
        for name, value in call.run(scalars).items():
            found[name] += value
    h = hyper_type(tuple(scalars))(**scalars)
    expected = [sums(g, p, m, size, h) for p, g, m, size in (row.tensors for row in bucket.rows)]
    for name, value in found.items():
        torch.testing.assert_close(value, float(sum(e[name] for e in expected)), rtol=1e-12, atol=1e-12)
    assert all(
        torch.equal(a, b)
        for x, y in zip(before, bucket.rows, strict=True)
        for a, b in zip(x.tensors, y.tensors, strict=True)
    )


def test_a_probe_in_bfloat16_and_codes_reads_what_the_rule_reads(monkeypatch):
    def sums(g, p, m, h):
        return {"dot": (g * m + p).sum()}

    rule = Rule(lambda g, p, m, h: (g, m), ELEMENT, {"m": zeros}, probe=Probe(sums))
    kept = (storage.Storage(storage.Format.Q8),)
    plan = plan_of(rule, Decay.NONE, torch.float32, kept=kept)
    param = torch.randn(70, 130, generator=torch.Generator().manual_seed(0)).bfloat16()
    inits = storage.inits(kept[0], rule, "m").values()
    row = plan.slots([param, param * 0.5, *(init(param, torch.float32) for init in inits)])
    row.kept[0].random_(0, 256, generator=torch.Generator().manual_seed(1))
    row.kept[1].uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    kernel = native.kernel(plan, ("lr",), row, sums)
    call = native.Call(kernel, native.coded_state(plan))
    call.add(kernel, row, 0)
    weight, (m,) = storage.decode(plan, row)
    expected = sums(row.grad.double(), weight.double(), m.double(), None)["dot"]
    torch.testing.assert_close(call.run({"lr": 0.1})["dot"], float(expected), rtol=1e-5, atol=1e-5)
