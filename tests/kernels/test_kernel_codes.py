"""State in bfloat16 and in codes, and rounded parameters: kernels keep them as `hfoptim.engine.storage` does."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from rows import bucket_of, by_kernel, by_loop, refuse

import hfoptim
from hfoptim.engine import backends, storage
from hfoptim.engine.codegen import build, native
from hfoptim.engine.rule import ELEMENT, TENSOR, nonnegative, zeros
from hfoptim.engine.storage import Format, Rounding, Storage
from hfoptim.engine.storage.quantization import unpack

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=f"needs {build.missing()}")

CPU = torch.device("cpu")
KINDS = [
    Storage(form, signed, stochastic)
    for form in (Format.Q8, Format.Q4)
    for signed in (True, False)
    for stochastic in (False, True)
]


def name_of(kind):
    return f"{kind.format.value}-{'+-' if kind.signed else '+'}-{'stochastic' if kind.stochastic else 'nearest'}"


every_kind = pytest.mark.parametrize("kind", KINDS, ids=name_of)
nearest_kind = pytest.mark.parametrize("kind", [k for k in KINDS if not k.stochastic], ids=name_of)
SHAPES = [
    *((130, 67), (77, 1001), (5000,), (1000, 3), (70, 64), (16, 8, 6, 7), (4096,), (2, 4101), (64, 129), (40, 255)),
]


def set_state(g, p, m, h):
    """The parameter stays, the gradient becomes the state."""
    return p - p, g


def encoder(kind, shapes):
    """A bucket whose step writes the gradient into a state of that kind."""
    state = zeros if kind.signed else nonnegative
    bucket = bucket_of(set_state, shapes, ELEMENT, kept=(kind,), m=state)
    for row in bucket.rows:
        if not kind.signed:
            row.grad.square_()
    return bucket


def decoded(bucket):
    """The values of the (first) state, row by row."""
    return [storage.decode(bucket.plan, row)[1][0] for row in bucket.rows]


def apart_by_codes(mine, other, bits):
    """By how many codes each entry differs."""
    if bits == 4:
        mine, other = unpack(mine), unpack(other)
    return (mine.int() - other.int()).abs()


def assert_codes_near(mine, other, kind):
    apart = apart_by_codes(mine, other, kind.bits)
    assert apart.max() <= 1
    assert apart.float().mean() < 1e-3


# -- writing codes ---------------------------------------------------------------------------------------------------


@nearest_kind
def test_the_nearest_code_is_that_of_the_definition(kind, monkeypatch):
    bucket = encoder(kind, SHAPES)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    for a, b in zip(mine.rows, other.rows, strict=True):
        assert torch.equal(a.kept[1], b.kept[1])
        assert torch.equal(a.kept[0], b.kept[0])
        assert torch.equal(a.param, b.param)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.stochastic], ids=name_of)
def test_stochastic_codes_follow_the_same_random_bits(kind, monkeypatch):
    bucket = encoder(kind, SHAPES)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    for a, b in zip(mine.rows, other.rows, strict=True):
        assert torch.equal(a.kept[1], b.kept[1])
        # The share between two codes, which a random number is compared to, is computed otherwise.
        assert_codes_near(a.kept[0], b.kept[0], kind)


@every_kind
def test_threads_draw_the_same_random_bits(kind, monkeypatch):
    bucket = encoder(kind, SHAPES)
    alone = by_kernel(bucket, monkeypatch)
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    together = by_kernel(bucket, monkeypatch, threads=3)
    for a, b in zip(alone.rows, together.rows, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def filled(kind, numbers, monkeypatch):
    """The codes of numbers in [-1, 1]; a 1 at the head of every block makes its scale 1."""
    size = kind.block - 1
    count = max(-(-len(numbers) // size), -(-storage.COMPRESS_FROM // kind.block))
    grad = torch.zeros(count, kind.block)
    grad[:, 0] = 1.0
    inside = torch.zeros(count * size)
    inside[: len(numbers)] = numbers
    grad[:, 1:] = inside.view(count, size)
    bucket = encoder(kind, [(count, kind.block)])
    bucket.rows[0].grad.copy_(grad)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert (mine.rows[0].kept[1] == 1.0).all()
    codes, expected = (unpack(b.rows[0].kept[0]) if kind.bits == 4 else b.rows[0].kept[0] for b in (mine, other))
    return codes[:, 1:].flatten()[: len(numbers)].long(), expected[:, 1:].flatten()[: len(numbers)].long()


@every_kind
def test_every_value_of_a_code_has_that_code(kind, monkeypatch):
    values = storage.codebook(kind.bits, kind.signed, CPU)
    codes, _ = filled(kind, values, monkeypatch)
    assert codes.tolist() == list(range(2**kind.bits))


@nearest_kind
def test_midpoints_and_their_neighbours(kind, monkeypatch):
    middles = storage.midpoints(kind.bits, kind.signed, CPU)
    up, down = (middles.nextafter(torch.tensor(end)) for end in (math.inf, -math.inf))
    least = 0 if (kind.bits, kind.signed) != (8, False) else 1  # what is above zero does not become zero
    count = torch.arange(len(middles)).clamp(min=least)
    for numbers, expected in ((middles, count), (down, count), (up, torch.arange(1, len(middles) + 1))):
        codes, loop = filled(kind, numbers, monkeypatch)
        assert torch.equal(codes, expected)
        assert torch.equal(codes, loop)


@every_kind
def test_numbers_of_every_magnitude(kind, monkeypatch):
    numbers = torch.cat([2.0 ** torch.linspace(-149, 0, 3000), torch.tensor([0.0, 1.0, 1e-45, 1.2e-38])])
    numbers = torch.cat([numbers, torch.linspace(0.0, 1.0, 3000)])
    if kind.signed:
        numbers = torch.cat([numbers, -numbers])
    codes, loop = filled(kind, numbers, monkeypatch)
    assert (codes - loop).abs().max() <= (1 if kind.stochastic else 0)
    assert (codes != loop).float().mean() < 1e-3
    if (kind.bits, kind.signed) == (8, False):
        assert ((codes == 0) == (numbers == 0)).all()


@every_kind
@pytest.mark.parametrize("size", [1e-38, 1e-30, 3e38])
def test_blocks_of_tiny_and_huge_numbers(kind, size, monkeypatch):
    bucket = encoder(kind, [(77, 1001)])
    grad = bucket.rows[0].grad
    grad.mul_(size / float(grad.abs().max()))
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert torch.equal(mine.rows[0].kept[1], other.rows[0].kept[1])
    assert_codes_near(mine.rows[0].kept[0], other.rows[0].kept[0], kind)


@every_kind
def test_a_block_of_zeros(kind, monkeypatch):
    bucket = encoder(kind, [(77, 1001), (5000,)])
    bucket.rows[0].grad[3:5] = 0.0
    bucket.rows[1].grad.zero_()
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    for a, b in zip(decoded(mine), decoded(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0.6 if kind.stochastic else 1e-6, atol=0.0)
    assert not decoded(mine)[0][3:5].any()
    assert not decoded(mine)[1].any()


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        pytest.param(kind, bad, id=f"{name_of(kind)}{bad}")
        for kind in KINDS
        for bad in ((math.nan, math.inf, -math.inf) if kind.signed else (math.nan, math.inf))
    ],
)
def test_what_is_not_finite_stays_in_its_block(kind, bad, monkeypatch):
    bucket = encoder(kind, [(77, 1001)])
    bucket.rows[0].grad[3, 300] = bad
    block = torch.zeros(77, 1001, dtype=torch.bool)
    start = 300 // kind.block * kind.block
    block[3, start : start + kind.block] = True
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    ours, theirs = decoded(mine)[0], decoded(other)[0]
    assert not ours[3, 300].isfinite()
    assert ours[~block].isfinite().all()
    assert (ours[~block] == theirs[~block]).float().mean() > 0.999
    assert torch.equal(mine.rows[0].kept[1].isfinite(), other.rows[0].kept[1].isfinite())
    if math.isnan(bad):
        assert ours[block].isnan().all()


# -- reading codes ---------------------------------------------------------------------------------------------------


@nearest_kind
def test_codes_are_read_as_by_the_definition(kind, monkeypatch):
    # Any codes and scales; 1/7 of the state is the update, the state itself is written back.
    def fn(g, p, m, h):
        return m / 7.0, m

    bucket = bucket_of(fn, SHAPES, ELEMENT, kept=(kind,), m=zeros if kind.signed else nonnegative)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    for a, b in zip(mine.rows, other.rows, strict=True):
        torch.testing.assert_close(a.param, b.param, rtol=1e-6, atol=1e-6)
        assert torch.equal(a.kept[0], b.kept[0])
        assert torch.equal(a.kept[1], b.kept[1])


def test_two_states_and_one_in_full(monkeypatch):
    # The scales of all coded states are of one shape; a state in between has none.
    def fn(g, p, m, s, v, h):
        return g * m + s, m * 0.9 + g, s + g, v + g * g

    for form in (Format.Q8, Format.Q4):
        kept = (Storage(form), storage.FULL, Storage(form, signed=False))
        bucket = bucket_of(fn, SHAPES, ELEMENT, kept=kept, m=zeros, s=zeros, v=nonnegative)
        mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
        for a, b in zip(mine.rows, other.rows, strict=True):
            for place in (0, 3, 4, 6):
                torch.testing.assert_close(a.tensors[place], b.tensors[place], rtol=1e-5, atol=1e-5)
            for place, kind in ((2, kept[0]), (5, kept[2])):
                assert_codes_near(a.tensors[place], b.tensors[place], kind)


@pytest.mark.parametrize("form", [Format.Q8, Format.Q4], ids=lambda f: f.value)
def test_a_tensors_norm_over_codes(form, monkeypatch):
    # Two passes: the second computes again what the first could not store exactly.
    def fn(g, p, m, h):
        m = m * 0.9 + g
        return m * (p.norm() / m.norm()), m

    bucket = bucket_of(fn, SHAPES, TENSOR, kept=(Storage(form),), m=zeros)
    monkeypatch.setattr(native, "_ONE_THREAD", 0)
    other = by_loop(bucket)
    for threads in (1, 3):
        mine = by_kernel(bucket, monkeypatch, threads)
        for a, b in zip(mine.rows, other.rows, strict=True):
            torch.testing.assert_close(a.param, b.param, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a.kept[1], b.kept[1], rtol=1e-6, atol=0.0)
            assert_codes_near(a.kept[0], b.kept[0], Storage(form))


# -- bfloat16 --------------------------------------------------------------------------------------------------------


def every_float():
    """Floats of every exponent and sign, ties of bfloat16 among them, infinities, no NaN."""
    upper = torch.arange(1 << 16, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    numbers = (upper.unsqueeze(1) | lower).flatten().view(torch.float32)
    return numbers[~numbers.isnan()]


def become(rounding, numbers, scale=1.0):
    """A bucket whose step moves bfloat16 parameters from 0 to the numbers."""
    bucket = bucket_of(
        lambda g, p, h: (-g,), [numbers.shape], ELEMENT, torch.bfloat16, grad_dtype=torch.float32, rounding=rounding
    )
    bucket.scalars["lr"] = scale
    bucket.rows[0].param.zero_()
    bucket.rows[0].grad.copy_(numbers)
    return bucket


def bits(tensor):
    return tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor


@pytest.mark.parametrize("rounding", list(Rounding), ids=lambda r: r.value)
def test_every_float_is_rounded_as_by_the_definition(rounding, monkeypatch):
    bucket = become(rounding, every_float())
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert torch.equal(bits(mine.rows[0].param), bits(other.rows[0].param))
    if rounding in (Rounding.KAHAN, Rounding.KAHAN_READ):
        torch.testing.assert_close(mine.rows[0].kept[0], other.rows[0].kept[0], rtol=0.0, atol=0.0, equal_nan=True)
    elif rounding.residual:
        assert torch.equal(mine.rows[0].kept[0], other.rows[0].kept[0])


@pytest.mark.parametrize("rounding", list(Rounding), ids=lambda r: r.value)
def test_not_a_number_stays_one(rounding, monkeypatch):
    bucket = become(rounding, torch.tensor([math.nan, 1.0, -math.nan]))
    row = by_kernel(bucket, monkeypatch).rows[0]
    assert row.param.isnan().tolist() == [True, False, True]
    row.grad.fill_(1.0)
    again = by_kernel(bucket, monkeypatch).rows[0]
    assert again.param.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("remainder", [Rounding.REMAINDER8, Rounding.REMAINDER16], ids=lambda r: r.value)
def test_remainders_are_put_back_behind_their_parameters(remainder, monkeypatch):
    bucket = become(remainder, torch.zeros(1 << 16))
    param, rest = bucket.rows[0].written
    g = torch.Generator().manual_seed(0)
    param.copy_(torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16))
    param[param.isnan()] = 0.0
    # Any remainder, also one that does not belong to the parameter: it may not take it through zero.
    limit = torch.iinfo(rest.dtype)
    rest.random_(limit.min, limit.max + 1, generator=g)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert torch.equal(bits(mine.rows[0].param), bits(other.rows[0].param))
    assert torch.equal(mine.rows[0].kept[0], other.rows[0].kept[0])


def test_sixteen_bits_of_remainder_are_exact_float32_weights(monkeypatch):
    numbers = every_float()
    numbers = numbers[numbers.abs() < 3e38]
    row = by_kernel(become(Rounding.REMAINDER16, numbers), monkeypatch).rows[0]
    # Zero minus a zero loses its sign.
    torch.testing.assert_close(storage.join_float32(row.param, row.kept[0]), numbers, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "kind", [Storage(Format.BF16, True, True), Storage(Format.BF16)], ids=["stochastic", "nearest"]
)
def test_bfloat16_state_is_rounded_as_by_the_definition(kind, monkeypatch):
    numbers = every_float()
    bucket = bucket_of(set_state, [numbers.shape], ELEMENT, kept=(kind,), m=zeros)
    bucket.rows[0].grad.copy_(numbers)
    mine, other = by_kernel(bucket, monkeypatch), by_loop(bucket)
    assert torch.equal(bits(mine.rows[0].kept[0]), bits(other.rows[0].kept[0]))


# -- optimizers ------------------------------------------------------------------------------------------------------

OPTIONS = {
    **{
        f"{form}-{rounding}": {"state_dtype": form, "state_rounding": rounding}
        for form in ("bfloat16", "8bit", "4bit")
        for rounding in ("nearest", "stochastic")
    },
    "kahan": {"kahan_sum": True, "dtype": torch.bfloat16},
    "stochastic": {"stochastic_rounding": True, "dtype": torch.bfloat16},
    "remainder8": {"master_weights": 8, "dtype": torch.bfloat16},
    "remainder16": {"master_weights": 16, "dtype": torch.bfloat16},
    "all-by-chance": {
        "stochastic_rounding": True,
        "state_dtype": "8bit",
        "state_rounding": "stochastic",
        "dtype": torch.bfloat16,
    },
    "fewest-bits": {"master_weights": 8, "state_dtype": "4bit", "dtype": torch.bfloat16},
}


STEPPED = [pytest.param(hfoptim.AdamW, options, id=f"adamw-{name}") for name, options in OPTIONS.items()]
# Two passes over codes, and remainders beside them.
STEPPED += [pytest.param(hfoptim.Lamb, OPTIONS[name], id=f"lamb-{name}") for name in ("8bit-nearest", "fewest-bits")]


def weights(param, state):
    """A parameter with what its rounding left."""
    if "remainder" in state:
        return storage.join_float32(param.detach(), state["remainder"])
    return param.detach().float() + (state["kahan_comp"].float() if "kahan_comp" in state else 0.0)


def assert_few_differ(mine, other, state_dtype):
    """All but a few entries are equal, and those differ by one code or one bfloat16 number.

    What differs in float32 by its last bit falls to the other side of a step 256 times as large, that of 8 bits of
    remainder, that seldom.
    """
    if mine.dtype is torch.uint8:
        assert_codes_near(mine, other, Storage(Format(state_dtype)))
        return
    mine, other = mine.float(), other.float()
    torch.testing.assert_close(mine, other, rtol=2**-7, atol=1e-5)
    assert ((mine - other).abs() > 1e-5 * other.abs() + 1e-6).float().mean() < 1 / 256


@pytest.mark.parametrize(("cls", "options"), STEPPED)
def test_every_step_is_that_of_the_loop(cls, options, monkeypatch):
    for name in ("loop", "foreach"):
        monkeypatch.setattr(backends.KERNELS_ASKED, name, SimpleNamespace(step=refuse))
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)

    def made(**more):
        g = torch.Generator().manual_seed(0)
        # The last one is too small for compressed state.
        params = [torch.nn.Parameter(torch.randn(shape, generator=g).to(dtype)) for shape in (*SHAPES, (40, 50))]
        return params, cls(params, lr=1e-2, weight_decay=0.1, **options, **more)

    (mine, fused), (other, loop) = made(fused=True), made(foreach=False)
    g = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(mine, other, strict=True):
            a.grad = torch.randn(a.shape, generator=g).to(dtype)
            b.grad = a.grad.clone()
        fused.step()
        loop.step()
        for a, b in zip(mine, other, strict=True):
            ours, theirs = fused.state[a], loop.state[b]
            assert ours.keys() == theirs.keys()
            assert_few_differ(weights(a, ours), weights(b, theirs), None)
            for key in theirs.keys() - {"remainder", "kahan_comp"}:
                assert (ours[key].dtype, ours[key].shape) == (theirs[key].dtype, theirs[key].shape)
                assert_few_differ(ours[key], theirs[key], options.get("state_dtype"))
            # The next step begins from equal memory.
            with torch.no_grad():
                a.copy_(b)
                for key in theirs:
                    ours[key].copy_(theirs[key])
