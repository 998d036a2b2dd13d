"""What kernels look up to decode and encode state: the values of codes, and where to look for a value's code."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hfoptim.engine import storage
from hfoptim.engine.storage.codebooks import least_codes

# Values fall into cells by their sign and their upper 16 bits; magnitudes below 2^-24 share one. The code is that of
# the least value in the cell or the next.
LOWEST = (127 - 24) << 7
HALF = 25 << 7
CELLS = 2 * HALF

_CPU = torch.device("cpu")


def _kind(kept: str) -> tuple[int, bool]:
    return int(kept[0]), not kept.endswith("unsigned")


@cache
def values(kept: str) -> list[float]:
    """What the codes of a kind (`Slot.kept`) stand for, in ascending order."""
    numbers: list[float] = storage.codebook(*_kind(kept), _CPU).tolist()
    return numbers


def least(kept: str) -> float:
    """What positive shares are raised to before they get a code: where that of zero is for zeros alone; else 0."""
    bits, signed = _kind(kept)
    return values(kept)[1] if bits == 8 and not signed else 0.0


@cache
def tables(codes: tuple[str, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """`books` and `cells` for these kinds of codes, on a device."""
    books, cells = [], []
    for kept in codes:
        kind = _kind(kept)
        books += [
            storage.codebook(*kind, _CPU),
            storage.midpoints(*kind, _CPU),
            torch.full((1,), torch.inf, dtype=torch.float32, device="cpu"),
        ]
        magnitude = torch.arange(LOWEST, LOWEST + HALF, device="cpu")
        magnitude = torch.cat([magnitude, magnitude | 1 << 15])
        # The cell of what is too small to count begins at zero.
        magnitude[0] = 0
        cells.append(least_codes(*kind, _CPU)[magnitude].to(torch.uint8))
    return torch.cat(books).to(device), torch.cat(cells).to(device)
