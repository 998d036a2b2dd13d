"""Codes of 8 and 4 bits: their values, the nearest one, the blocks they share a scale in."""

from __future__ import annotations

import itertools

import peers
import pytest
import torch

from hfoptim.engine import storage
from hfoptim.engine.storage import Format, Storage
from hfoptim.engine.storage.quantization import dequantize, pack, quantize, unpack

CPU = torch.device("cpu")
KINDS = [Storage(form, signed) for form in (Format.Q8, Format.Q4) for signed in (True, False)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k.format.value}-{'+-' if k.signed else '+'}")


def peer(find, name):
    """What a function of `peers` finds under a name; skips where that is not installed."""
    try:
        return find(name)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))


def values_of(kind):
    return storage.codebook(kind.bits, kind.signed, CPU)


def noise(kind, *shape, seed=0):
    """Numbers over several orders of magnitude, as moments have them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 10.0 ** torch.empty(shape[0], 1).uniform_(-6, 2, generator=g)
    return x if kind.signed else x.square()


# -- the values codes stand for --------------------------------------------------------------------------------------


@every_kind
def test_values_are_sorted_apart_and_reach_one(kind):
    values = values_of(kind)
    assert len(values) == 2**kind.bits
    assert (values.diff() > 0).all()
    assert values[-1] == 1.0
    if (kind.bits, kind.signed) == (4, False):
        assert values[0] == 1 / 16  # an optimizer divides by its root
    else:
        assert 0.0 in values
    if kind.signed:
        # All but 0 and 1 come in pairs.
        inner = values[:-1]
        assert torch.equal(inner, -inner.flip(0))
    else:
        assert (values >= 0).all()


def test_eight_bits_are_the_dynamic_map_of_bitsandbytes():
    theirs = peer(peers.load, "bitsandbytes.functional.create_dynamic_map")
    for signed in (True, False):
        torch.testing.assert_close(
            storage.codebook(8, signed, CPU), theirs(signed=signed).float(), rtol=2.5e-7, atol=0.0
        )


@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True)])
def test_values_are_the_dynamic_map_of_torchao(bits, signed):
    theirs = peer(peers.submodule, "torchao.optim.quant_utils").create_dynamic_map(signed, bits - 1, bits)
    torch.testing.assert_close(storage.codebook(bits, signed, CPU), torch.tensor(theirs), rtol=2.5e-7, atol=0.0)


# -- the nearest code ------------------------------------------------------------------------------------------------


@every_kind
def test_the_code_is_the_number_of_midpoints_below(kind):
    middles = storage.midpoints(kind.bits, kind.signed, CPU)
    assert torch.equal(middles, (values_of(kind)[:-1] + values_of(kind)[1:]) / 2)
    up, down = (middles.nextafter(torch.tensor(end)) for end in (torch.inf, -torch.inf))
    shares = torch.cat([values_of(kind), middles, up, down, torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45])])
    shares = torch.cat([shares, torch.linspace(-1.0, 1.0, 5000), 10.0 ** torch.linspace(-9, 0, 5000)])
    shares = shares[shares.abs() <= 1.0]
    if not kind.signed:
        shares = shares[shares >= 0]
    expected = (shares.unsqueeze(1) > middles).sum(1)
    if (kind.bits, kind.signed) == (8, False):
        expected[(shares > 0) & (expected == 0)] = 1  # see below
    # A 1 at the head of every block makes its scale 1.
    size = kind.block - 1
    for start in range(0, len(shares), size):
        block = torch.cat([torch.ones(1), shares[start : start + size]]).unsqueeze(0)
        codes, scale = quantize(kind, block)
        codes = unpack(codes)[:, : block.shape[1]] if kind.bits == 4 else codes
        assert scale.tolist() == [[1.0]]
        assert torch.equal(codes[0, 1:].long(), expected[start : start + size])


@every_kind
def test_no_two_midpoints_share_the_bits_that_the_code_is_looked_up_by(kind):
    upper = storage.midpoints(kind.bits, kind.signed, CPU).view(torch.int32) >> 16
    assert len(upper.unique()) == len(upper)


@every_kind
@pytest.mark.parametrize("columns", [1, 2, 127, 128, 129, 255, 256, 257, 600])
def test_each_block_of_a_row_has_its_own_scale(kind, columns):
    x = noise(kind, 3, columns)
    x[1] = 0.0
    codes, scale = quantize(kind, x)
    count = -(-columns // kind.block)
    assert codes.dtype is torch.uint8
    assert codes.shape == (3, columns if kind.bits == 8 else -(-columns // 2))
    assert scale.shape == (3, count)
    out = dequantize(kind, codes, scale, columns)
    for row, i in itertools.product(range(3), range(count)):
        part = slice(i * kind.block, (i + 1) * kind.block)
        block = x[row, part]
        largest = block.abs().max()
        assert scale[row, i] == largest
        # Nearest of all values there are; the share of a number that is 0 / 0 counts as 0.
        shares = block / largest if largest else block
        nearest = (shares.unsqueeze(-1) - values_of(kind)).abs().amin(-1)
        error = (out[row, part] - block).abs()
        assert (error <= (nearest + 1e-6) * largest).all()
    assert not out[1].any()


@every_kind
def test_a_number_that_is_a_code_comes_back(kind):
    x = (values_of(kind) * 0.37).repeat(2, 3)
    x[:, 0 :: kind.block] = 0.37  # the largest of every block
    codes, scale = quantize(kind, x)
    torch.testing.assert_close(dequantize(kind, codes, scale, x.shape[1]), x, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("stochastic", [False, True])
def test_only_zero_becomes_zero_where_an_optimizer_would_divide(stochastic):
    x = torch.tensor([[1.0, 0.0, 1e-30, 1e-9, 1e-7, 5e-7]])
    for form in (Format.Q8, Format.Q4):
        kind = Storage(form, signed=False, stochastic=stochastic)
        for seed in range(50):
            out = dequantize(kind, *quantize(kind, x, seed), x.shape[1])
            assert (out[x > 0] > 0).all()
    eight = Storage(Format.Q8, signed=False, stochastic=stochastic)
    assert dequantize(eight, *quantize(eight, x), x.shape[1])[0, 1] == 0.0


def test_two_codes_to_a_byte_the_even_column_below():
    codes = torch.tensor([[1, 2, 3], [15, 0, 9]], dtype=torch.uint8)
    assert pack(codes).tolist() == [[0x21, 0x03], [0x0F, 0x09]]
    assert torch.equal(unpack(pack(codes))[:, :3], codes)


# -- against the peers' quantizers -----------------------------------------------------------------------------------


def errors(ours, theirs, x):
    return [(float((y - x).square().sum()), float((y - x).abs().max())) for y in (ours, theirs)]


@pytest.mark.parametrize("signed", [True, False])
def test_the_error_of_eight_bits_is_not_above_that_of_bitsandbytes(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    kind = Storage(Format.Q8, signed)
    x = noise(kind, 64, 768)
    codes, scale = quantize(kind, x)
    theirs, state = functional.quantize_blockwise(x, functional.create_dynamic_map(signed), blocksize=256)
    back = functional.dequantize_blockwise(theirs, state)
    assert torch.equal(scale.flatten(), state.absmax)
    mine, other = errors(dequantize(kind, codes, scale, 768), back, x)
    assert mine[0] <= other[0] * (1 + 1e-5)  # the values differ in the last digit
    assert mine[1] <= other[1] * (1 + 1e-5)


@every_kind
def test_the_error_is_not_above_that_of_torchao(kind):
    quant = peer(peers.submodule, "torchao.optim.quant_utils")
    # torchao's own map for this kind; its blocks run through the rows, as ours do where rows are whole blocks.
    qmap = torch.tensor(
        [(k + 1) / 16 for k in range(16)]
        if (kind.bits, kind.signed) == (4, False)
        else quant.create_dynamic_map(kind.signed, kind.bits - 1, kind.bits)
    )
    x = noise(kind, 64, 768)
    codes, scale = quantize(kind, x)
    shares, their_scale = quant.scale_tensor(x, kind.block)
    coder = quant.quantize_8bit_with_qmap if kind.bits == 8 else quant.quantize_4bit_with_qmap
    back = quant.dequant_with_qmap(coder(shares, qmap), qmap, their_scale)
    mine, other = errors(dequantize(kind, codes, scale, 768), back, x)
    assert mine[0] <= other[0] * (1 + 1e-5)  # the values differ in the last digit
    assert mine[1] <= other[1] * (1 + 1e-5)


# -- stochastic ------------------------------------------------------------------------------------------------------


@every_kind
def test_stochastic_codes_are_neighbours_and_right_on_average(kind):
    by_chance = Storage(kind.format, kind.signed, stochastic=True)
    x = noise(kind, 2, 300)
    values = values_of(kind)
    total = torch.zeros_like(x)
    for seed in range(400):
        codes, scale = quantize(by_chance, x, seed * 7919, 0)
        total += dequantize(kind, codes, scale, 300)
    largest = scale.repeat_interleave(kind.block, 1)[:, :300]
    shares = x / largest
    low = (torch.bucketize(shares, values, right=True) - 1).clamp(0, len(values) - 2)
    below, above = values[low] * largest, values[low + 1] * largest
    # What no code reaches (the smallest, the most negative) goes to the nearest end.
    expected = x.clamp(min=below)
    if (kind.bits, kind.signed) == (8, False):
        expected = torch.where(x > 0, x.clamp(min=values[1] * largest), x)
    codes = unpack(codes)[:, :300] if kind.bits == 4 else codes
    assert ((codes.long() == low) | (codes.long() == low + 1)).all()
    deviation = (total / 400 - expected).abs() / (above - below)
    assert deviation.max() < 5 * 0.5 / 400**0.5
    assert deviation.mean() < 0.025


def test_stochastic_codes_follow_the_random_bits():
    kind = Storage(Format.Q8, True, stochastic=True)
    x = noise(kind, 1, 256)
    codes, scale = quantize(kind, x, 12345, 6789)
    values = values_of(kind)
    shares = (x / scale).flatten()
    low = (torch.bucketize(shares, values, right=True) - 1).clamp(0, 254)
    chance = (storage.random_bits(256, 12345, 6789, CPU) >> 8).float() / 2**24
    expected = low + (chance < (shares - values[low]) / (values[low + 1] - values[low]))
    assert torch.equal(codes.flatten().long(), expected)


# -- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((5000,), (1, 5000)),
        ((70, 64), (70, 64)),
        ((70, 63), (1, 4410)),
        ((1, 5000), (1, 5000)),
        ((8, 16, 7, 7), (8, 784)),
        ((600, 3, 3), (1, 5400)),
        ((0, 64), (0, 64)),
        ((), (1, 1)),
    ],
)
def test_the_matrix_a_parameter_is_seen_as(shape, matrix):
    assert storage.matrix_shape(torch.Size(shape)) == matrix
    rows, columns = matrix
    eight, four = Storage(Format.Q8).shapes(shape), Storage(Format.Q4).shapes(shape)
    assert eight == (shape, (rows, -(-columns // 256)))
    assert four == ((rows, -(-columns // 2)), (rows, -(-columns // 128)))
