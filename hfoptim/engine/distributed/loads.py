"""Which rank owns what, where each piece of work is done by one of them: the same answer on every rank."""

from __future__ import annotations

from collections.abc import Iterable


def owners_of(sizes: Iterable[int], ranks: int) -> list[int]:
    """The owner of each piece: one after the other, each goes to the rank with the least to do so far.

    Args:
        sizes: of the pieces; the largest first give the most even loads.
        ranks: how many there are.
    """
    loads, found = [0] * ranks, []
    for size in sizes:
        owner = loads.index(min(loads))
        loads[owner] += size
        found.append(owner)
    return found
