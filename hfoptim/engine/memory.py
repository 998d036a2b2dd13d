"""How the memory of tensors can be walked through, and cut: the one place that says so for every backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def contiguous(tensors: Sequence[Tensor]) -> bool:
    """Whether the entries of every tensor lie in memory without gaps in their logical order."""
    return all([t.is_contiguous() for t in tensors])  # noqa: C419 - twice as fast as a generator


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors have one dense layout, contiguous or permuted (channels-last, a transposed weight).

    Then one walk through memory meets the same entry in each of them, in whatever order.
    """
    if contiguous(tensors):
        return True
    first = tensors[0]
    return all(t.stride() == first.stride() for t in tensors) and _dense(first)


def flat(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """1-D views that walk through the memory of all tensors in the same order; None where there are none."""
    if not alike(tensors):
        return None
    return [t.as_strided((t.numel(),), (1,)) for t in tensors]


def _dense(tensor: Tensor) -> bool:
    """Whether the tensor covers one gapless, non-overlapping piece of memory."""
    expected = 1
    for size, stride in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def sections(rows: int, columns: int, limit: int, block: int = 1) -> Iterator[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of sections of a matrix, of about `limit` entries each.

    Whole rows, as many as there is room for; spans of whole blocks of `block` entries where a row is longer than that.
    """
    if columns <= limit:
        step = limit // columns
        yield from ((top, min(rows, top + step), 0, columns) for top in range(0, rows, step))
        return
    span = max(block, limit // block * block)
    for top in range(rows):
        yield from ((top, top + 1, left, min(columns, left + span)) for left in range(0, columns, span))
