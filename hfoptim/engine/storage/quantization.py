"""Numbers as codes: each block of a row has one scale, its largest magnitude, and each entry the code of its share.

A matrix of codes has the rows of the parameter (`formats.matrix_shape`), blocks run along a row, and the last one of a
row may be shorter. Codes of 4 bits lie two to a byte, the even column in the lower half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfoptim.engine.storage.codebooks import codebook, least_codes, midpoints
from hfoptim.engine.storage.formats import Storage, ceil_div
from hfoptim.engine.storage.rounding import random_bits


def quantize(storage: Storage, values: Tensor, seed: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 matrix.

    Args:
        storage: the format; with `stochastic`, an entry between two codes takes the upper one with a probability of
            its distance from the lower one.
        values: a matrix whose rows begin with a block.
        seed: of the random bits.
        start: index of the first entry in the parameter.

    Returns:
        (codes, uint8; scales, float32).
    """
    rows, columns = values.shape
    count = ceil_div(columns, storage.block)
    block = columns if count == 1 else storage.block
    if count * block != columns:
        values = torch.nn.functional.pad(values, (0, count * block - columns))
    blocks = values.reshape(rows, count, block)
    scale = blocks.abs().amax(-1)
    shares = blocks / torch.where(scale == 0, 1.0, scale).unsqueeze(-1)
    shares = shares.view(rows, count * block)[:, :columns].contiguous()
    if not storage.signed and storage.bits == 8:
        # This map has a zero, by which an optimizer would divide: only what is zero becomes that.
        least = codebook(storage.bits, storage.signed, shares.device)[1]
        shares = torch.where(shares > 0, shares.clamp(min=least), shares)
    codes = _stochastic(storage, shares, seed, start) if storage.stochastic else _nearest(storage, shares)
    codes = codes.view(rows, columns).to(torch.uint8)
    return (pack(codes) if storage.bits == 4 else codes), scale


def dequantize(storage: Storage, codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The float32 matrix of so many columns that codes (of any shape) and scales stand for."""
    rows, count = scale.shape
    block = columns if count == 1 else storage.block
    codes = unpack(codes)[:, :columns] if storage.bits == 4 else codes
    values = codebook(storage.bits, storage.signed, codes.device).index_select(0, codes.reshape(-1).int())
    if count * block == columns:
        return (values.view(rows, count, block) * scale.unsqueeze(-1)).view(rows, columns)
    return values.view(rows, columns).mul_(scale.repeat_interleave(block, 1)[:, :columns])


def _nearest(storage: Storage, shares: Tensor) -> Tensor:
    """For each share the number of midpoints below it, as int32."""
    kind = (storage.bits, storage.signed, shares.device)
    if shares.device.type not in ("cpu", "meta"):  # on the latter memory is foretold, which is more this way
        return torch.bucketize(shares, midpoints(*kind), out_int32=True)
    # Several times faster than a search, of which a CPU mispredicts every branch.
    upper = (shares.view(torch.int32).flatten() >> 16).bitwise_and_(0xFFFF)
    codes = least_codes(*kind).index_select(0, upper)
    above = torch.nn.functional.pad(midpoints(*kind), (0, 1), value=torch.inf).index_select(0, codes)
    return codes.add_((shares.flatten() > above).int()).view(shares.shape)


def _stochastic(storage: Storage, shares: Tensor, seed: int, start: int) -> Tensor:
    """For each share the code below it, or by chance the next; as int32."""
    values = codebook(storage.bits, storage.signed, shares.device)
    shares = shares.flatten()
    nearest = _nearest(storage, shares)
    low = nearest.sub_((values.index_select(0, nearest) > shares).int()).clamp_(0, len(values) - 2)
    below, above = values.index_select(0, low), values.index_select(0, low + 1)
    chance = (random_bits(len(shares), seed, start, shares.device) >> 8).to(torch.float32) * 2.0**-24
    return low.add_(chance < (shares - below) / (above - below))


def pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bits to a byte, along the rows."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack(packed: Tensor) -> Tensor:
    """What `pack` packed, with one column more where their number was odd."""
    return torch.stack([packed & 15, packed >> 4], -1).flatten(1)
