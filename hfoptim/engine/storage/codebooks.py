"""The values that codes stand for, as shares of their block's largest entry.

The dynamic map (Dettmers et al., arXiv 2110.02861) spends its codes by decades: `2^i` fractions of the i-th one,
counted from the smallest, so that small entries keep their order of magnitude and large ones their digits. Four bits
without a sign are spread evenly, and leave out zero, by which an optimizer would divide (Li et al., arXiv 2309.01507).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def dynamic(bits: int, signed: bool) -> list[float]:
    """The dynamic map of so many bits, sorted: `2^bits` values in [-1, 1], or in [0, 1]."""
    decades = bits - 1
    positive = []
    for i in range(decades):
        count = 2**i if signed else 2 ** (i + 1)
        # The middles of `count` equal parts of [0.1, 1], moved into their decade.
        positive += [10.0 ** (i + 1 - decades) * (0.1 + 0.9 * (j + 0.5) / count) for j in range(count)]
    return sorted([*positive, *([-v for v in positive] if signed else []), 0.0, 1.0])


def linear(bits: int) -> list[float]:
    """`2^bits` equal steps up to 1, without zero."""
    return [(k + 1) / 2**bits for k in range(2**bits)]


def code_values(bits: int, signed: bool) -> list[float]:
    """What each code stands for, sorted."""
    return linear(bits) if bits == 4 and not signed else dynamic(bits, signed)


@cache
def codebook(bits: int, signed: bool, device: torch.device) -> Tensor:
    """`code_values` in float32, on a device."""
    return torch.tensor(code_values(bits, signed), dtype=torch.float32, device=device)


@cache
def midpoints(bits: int, signed: bool, device: torch.device) -> Tensor:
    """The values halfway between neighbouring codes, in float32: what lies above the k-th has at least code k + 1."""
    values = codebook(bits, signed, device)
    return (values[:-1] + values[1:]) / 2


@cache
def least_codes(bits: int, signed: bool, device: torch.device) -> Tensor:
    """The least code of a share by the upper 16 bits of its float32 form, as int32.

    Midpoints lie so far apart that no two of them share these bits: the code is this one or the next.
    """
    upper = torch.arange(1 << 16, dtype=torch.int32, device="cpu") << 16
    # Of the numbers with these upper bits the lowest: of negative ones that of the largest magnitude.
    lowest = torch.where(upper < 0, upper | 0xFFFF, upper).view(torch.float32)
    middles = midpoints(bits, signed, torch.device("cpu"))
    codes = torch.bucketize(lowest.nan_to_num(0.0), middles, out_int32=True)
    return codes.to(device)
