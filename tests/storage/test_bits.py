"""Random bits, stochastic rounding to bfloat16, and float32 numbers as bfloat16 and a remainder."""

from __future__ import annotations

import pytest
import torch

from hfoptim.engine import storage
from hfoptim.engine.storage.rounding import join_float32, split_float32, stochastic_bfloat16

CPU = torch.device("cpu")


def hashed(index, seed):
    """The hash in Python's integers, written down once more."""
    x = (index * 2654435769 + seed) % 2**32
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def numbers(count=20000, seed=0):
    """float32 numbers of all magnitudes and both signs, and some at the ends of what there is."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=g) * 10.0 ** torch.empty(count).uniform_(-30, 30, generator=g)
    ends = torch.tensor([0.0, 1e-45, 1.1754944e-38, 1.0, 1.00390625, 3.3e38, 3.38953139e38, 3.4028235e38])
    return torch.cat([x, ends, -ends])


# -- random bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1000, 2**31 - 3, 2**32 - 2, 2**33 + 7])
@pytest.mark.parametrize("seed", [0, 1, 0xDEADBEEF, 2**32 - 1])
def test_random_bits_are_the_hash_of_index_and_seed(seed, start):
    bits = storage.random_bits(5, seed, start, CPU)
    assert bits.tolist() == [hashed(start + i, seed) for i in range(5)]


def test_seeds_of_steps_parameters_and_states():
    assert storage.row_seed(3, 7) == (3 * 0x9E3779B1 + 7 * 0x85EBCA77) % 2**32
    assert storage.state_seed(storage.row_seed(3, 7), 1) == ((3 * 0x9E3779B1 + 7 * 0x85EBCA77 + 2 * 0xC2B2AE3D) % 2**32)
    seeds = {
        storage.state_seed(storage.row_seed(t, ordinal), state)
        for t in range(1, 60)
        for ordinal in range(60)
        for state in range(-1, 3)
    }
    assert len(seeds) == 59 * 60 * 4


def test_random_bits_are_spread_evenly_and_do_not_repeat_from_step_to_step():
    count = 1 << 14
    steps = torch.stack([storage.random_bits(count, storage.row_seed(t, 0), 0, CPU) for t in range(1, 9)])
    uniform = (steps >> 8).double() / 2**24
    assert (uniform.mean(1) - 0.5).abs().max() < 0.01
    assert (uniform.var(1) - 1 / 12).abs().max() < 0.003
    for bit in range(32):
        assert abs(float((steps >> bit & 1).double().mean()) - 0.5) < 0.01
    related = torch.corrcoef(uniform) - torch.eye(8)
    assert related.abs().max() < 0.04
    neighbours = torch.corrcoef(torch.stack([uniform[0, :-1], uniform[0, 1:]]))[0, 1]
    assert neighbours.abs() < 0.04


# -- stochastic rounding to bfloat16 ---------------------------------------------------------------------------------


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
    x = numbers(300)
    x = x[(x.abs() < 3e38) & (x.abs() > 1e-37)]
    low = (x.view(torch.int32) & -65536).view(torch.float32)
    high = ((x.view(torch.int32) & -65536) + 65536).view(torch.float32)
    total = torch.zeros_like(x, dtype=torch.float64)
    for t in range(1, 401):
        rounded = stochastic_bfloat16(x, storage.row_seed(t, 0), 0).float()
        assert ((rounded == low) | (rounded == high)).all()
        total += rounded.double()
    deviation = (total / 400 - x.double()).abs() / (high - low).double().abs()
    assert deviation.max() < 5 * 0.5 / 400**0.5
    assert deviation.mean() < 0.025


def test_what_bfloat16_has_stays_and_what_is_not_finite_too():
    exact = numbers().to(torch.bfloat16)
    exact = exact[exact.isfinite()]
    assert torch.equal(stochastic_bfloat16(exact.float(), 77, 0), exact)
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert torch.equal(stochastic_bfloat16(odd, 77, 0)[:2].float(), odd[:2])
    assert stochastic_bfloat16(odd, 77, 0)[2].isnan()
    # A NaN all of whose set bits would be cut.
    assert stochastic_bfloat16(torch.tensor([0x7F800001], dtype=torch.int32).view(torch.float32), 0, 0).isnan()


def test_stochastic_rounding_goes_by_logical_order_and_by_the_index():
    x = numbers(5996).reshape(-1, 4)
    whole = stochastic_bfloat16(x, 5, 0)
    assert torch.equal(stochastic_bfloat16(x[100:], 5, 400), whole[100:])
    columns = x.t().contiguous().t()
    assert torch.equal(stochastic_bfloat16(columns, 5, 0), whole)
    assert not torch.equal(stochastic_bfloat16(x, 6, 0), whole)


# -- remainders ------------------------------------------------------------------------------------------------------


def test_sixteen_bits_more_are_exact():
    x = numbers()
    number, residual = split_float32(x, torch.int16)
    assert (number.dtype, residual.dtype) == (torch.bfloat16, torch.int16)
    assert torch.equal(join_float32(number, residual).view(torch.int32), x.view(torch.int32))


def test_the_bfloat16_part_is_the_nearest():
    x = numbers()
    x = x[x.abs() < 3.3e38]
    number, _ = split_float32(x, torch.int16)
    error = (number.double() - x.double()).abs()
    assert (error <= (x.to(torch.bfloat16).double() - x.double()).abs()).all()  # ties go up, not to even


def test_eight_bits_more_are_twenty_four_in_all():
    x = numbers()
    x = x[(x.abs() < 3.3e38) & (x.abs() > 1e-30)]
    number, residual = split_float32(x, torch.int8)
    assert (number.dtype, residual.dtype) == (torch.bfloat16, torch.int8)
    assert torch.equal(number, split_float32(x, torch.int16)[0])
    error = (join_float32(number, residual).view(torch.int32) - x.view(torch.int32)).abs()
    assert error.max() <= 255  # of 2^16; at the upper end of the remainder's range, else half of 2^8
    assert (error <= 128).float().mean() > 0.99


def test_what_is_not_finite_stays_so():
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, -torch.nan])
    payload = torch.tensor([0x7FFFFFFF, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    for kept in (torch.int8, torch.int16):
        number, residual = split_float32(torch.cat([odd, payload]), kept)
        assert torch.equal(number[:2].float(), odd[:2])
        assert number[2:].isnan().all()
        back = join_float32(number, residual)
        assert torch.equal(back[:2], odd[:2])
        assert back[2:].isnan().all()


def test_a_remainder_that_belongs_to_another_number_does_no_harm():
    # A user may write the parameter: weights are loaded, rows are set to zero.
    written = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0e38, 1e-40], dtype=torch.bfloat16)
    for kept, least in ((torch.int8, -128), (torch.int16, -32768)):
        for residual in (least, -1, 0, 1, -least - 1):
            back = join_float32(written, torch.full((6,), residual, dtype=kept))
            assert back.isfinite().all()
            assert (back.sign() * written.float().sign() >= 0).all()
            assert ((back - written.float()).abs() <= written.float().abs() / 128 + 1e-38).all()
