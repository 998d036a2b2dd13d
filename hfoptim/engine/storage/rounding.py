"""Random bits without a generator, and float32 numbers split into bfloat16 and a rest.

Random bits are a hash of an entry's index and a seed made of the step, the parameter and the tensor: the same in every
backend, the same after a checkpoint, and nothing to save.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from hfoptim.engine.precision import precise

# Entries drawn at once.
_PIECE = 1 << 20
_MASK = 0xFFFFFFFF
# Odd constants of 32 bits: of the golden ratio, and of xxHash.
_INDEX, _STEP, _ORDINAL, _SALT = 2654435769, 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
# More states than a rule has.
_FAR = 1000


_Seed = TypeVar("_Seed", int, Tensor)


def row_seed(step: int, ordinal: _Seed, start: int = 0) -> _Seed:
    """The seed of a parameter's random bits.

    Args:
        step: number of the step, from 1.
        ordinal: the parameter's place among those of all groups; those of several, as int64, for a seed each.
        start: index in the parameter of the row's first entry, where the row is a part of it.
    """
    return (step * _STEP + ordinal * _ORDINAL + start * _INDEX) & _MASK


def drawing_seed(step: int, ordinal: int, start: int = 0) -> int:
    """The seed of what a state is drawn from again at a step; far from those by which its new values are rounded.

    Args:
        step, ordinal, start: as of `row_seed`.
    """
    return state_seed(row_seed(step, ordinal, start), _FAR)


def state_seed(seed: _Seed, index: int) -> _Seed:
    """The seed of the `index`-th state of a parameter whose own is `seed`."""
    return (seed + (index + 1) * _SALT) & _MASK


def random_bits(count: int, seed: _Seed, start: int, device: torch.device) -> Tensor:
    """32 random bits for each of `count` entries from index `start` on, as int64; a row of them for each of the seeds.

    The mixing steps are those of Wellons' hash "lowbias32", by which every bit of the index moves every bit.
    """
    x = torch.arange(start, start + count, dtype=torch.int64, device=device)
    x = x.mul_(_INDEX)
    x = (x + seed.unsqueeze(-1) if isinstance(seed, Tensor) else x.add_(seed)).bitwise_and_(_MASK)
    x = x.bitwise_xor_(x >> 16).mul_(0x7FEB352D).bitwise_and_(_MASK)
    x = x.bitwise_xor_(x >> 15).mul_(0x846CA68B).bitwise_and_(_MASK)
    return x.bitwise_xor_(x >> 16)


def normal(shape: Sequence[int], seed: _Seed, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers of a standard normal distribution, of two hashes of each entry's index (Box and Muller).

    For a tensor of seeds as many tensors of the shape, stacked.
    """
    stacked: tuple[int, ...] = tuple(seed.shape) if isinstance(seed, Tensor) else ()
    out = torch.empty(*stacked, math.prod(shape), dtype=dtype, device=device)
    for start in range(0, out.shape[-1], _PIECE):
        piece = out[..., start : start + _PIECE]
        bits = (random_bits(piece.shape[-1], state_seed(seed, index), start, device) for index in (0, 1))
        size, angle = ((precise(each) + 0.5) / 2**32 for each in bits)
        piece.copy_((-2.0 * size.log()).sqrt() * (2.0 * math.pi * angle).cos())
    return out.view((*stacked, *shape))


def stochastic_bfloat16(values: Tensor, seed: int, start: int) -> Tensor:
    """float32 `values` rounded up or down to bfloat16, by chance and right on average.

    Args:
        values: of any layout; the random bits go by logical order.
        seed: of the random bits.
        start: index of the first entry.
    """
    random = random_bits(values.numel(), seed, start, values.device).bitwise_and_(0xFFFF).to(torch.int32)
    # Added to the bits that will be cut, they carry with a probability of what is cut.
    bits = values.view(torch.int32) + random.view(values.shape)
    rounded = (bits >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(values.isfinite(), rounded, values.to(torch.bfloat16))


def split_float32(values: Tensor, kept: torch.dtype) -> tuple[Tensor, Tensor]:
    """float32 numbers as bfloat16 and a remainder.

    Of the number's 32 bits the upper half, rounded half up in magnitude, is the bfloat16 number; the remainder is what
    is left, between -2^15 and 2^15 - 1, of which int8 keeps the upper half. A NaN has the remainder 0.

    Args:
        values: in float32.
        kept: dtype of the remainder, int16 or int8.
    """
    bits = values.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    magnitude = torch.where(magnitude > 0x7F800000, 0x7FC00000, magnitude)
    high = (magnitude + 0x8000) >> 16
    residual = magnitude - (high << 16)
    if kept is torch.int8:
        residual = ((residual + 128) >> 8).clamp_(-128, 127)
    number = (high | ((bits >> 16) & 0x8000)).to(torch.int16).view(torch.bfloat16)
    return number, residual.to(kept)


def join_float32(values: Tensor, residual: Tensor) -> Tensor:
    """The float32 numbers that `split_float32` split.

    The remainder may belong to other values than these, written by the user: it never takes a number through zero.
    """
    bits = values.view(torch.int16).to(torch.int32)
    remainder = residual.to(torch.int32)
    if residual.dtype is torch.int8:
        remainder = remainder << 8
    magnitude = (((bits & 0x7FFF) << 16) + remainder).clamp_(min=0)
    return (magnitude | ((bits & -0x8000) << 16)).view(torch.float32)
