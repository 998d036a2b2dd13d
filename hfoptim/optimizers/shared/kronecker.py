"""Preconditioners that are Kronecker products: one square matrix for each side of a tensor, its factors.

The functions work on the last dimensions of what they get; those before them are a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import State


def merged(shape: Sequence[int], largest: int) -> tuple[int, ...]:
    """The shape with neighbours made one side, from the first on, as long as that has at most `largest` entries."""
    sides: list[int] = []
    side = 1
    for size in shape:
        if side * size > largest and side > 1:
            sides.append(side)
            side = 1
        side *= size
    return (*sides, side) if side > 1 or not sides else tuple(sides)


class Folding(NamedTuple):
    """How a tensor becomes what its factors see.

    Args:
        ndim: its dimensions.
        largest: up to how many entries neighbouring sides are made one; 0: they stay.
        channels_last: whether the last of four dimensions goes to the second place before.
    """

    ndim: int
    largest: int = 0
    channels_last: bool = False

    def sides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Those of a tensor of that shape as its factors see it."""
        ordered = (shape[0], shape[3], *shape[1:3]) if self.channels_last else tuple(shape)
        return merged(ordered, self.largest) if self.largest else ordered

    def fold(self, x: Tensor) -> Tensor:
        """The tensor in that shape, a view if it can be; with the same strides always, as rounding goes by them."""
        batch, shape = x.shape[: x.ndim - self.ndim], x.shape[x.ndim - self.ndim :]
        return (x.movedim(-1, -3) if self.channels_last else x).contiguous().view(*batch, *self.sides(shape))

    def unfold(self, x: Tensor, like: Tensor) -> Tensor:
        """The way back, to the shape and the strides of `like`."""
        if self.channels_last:
            x = x.reshape(like.movedim(-1, -3).shape).movedim(-3, -1)
        x = x.reshape(like.shape)
        return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)

    def square(self, side: int) -> State:
        """State that begins as a square matrix of zeros for one side."""

        def init(param: Tensor, dtype: torch.dtype) -> Tensor:
            size = self.sides(param.shape)[side]
            return torch.zeros(size, size, dtype=dtype, device=param.device)

        return State(init)


def along(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """The tensor with each of its sides multiplied by a matrix: over i, `x[..i..] matrix[i, j]`; None leaves a side."""
    for matrix in matrices:
        x = x.movedim(-len(matrices), -1)
        if matrix is not None:
            x = torch.bmm(_rows(x, len(matrices)), _stack(matrix)).reshape(x.shape)
    return x


def add_gram(factor: Tensor, x: Tensor, side: int, sides: int, keep: float, alpha: float) -> Tensor:
    """`keep factor + alpha X X^T`, of the matrix X whose rows are what lies at each index of one side of a tensor.

    Args:
        factor: of that side.
        x: the tensor.
        side: which side, from 0.
        sides: how many the tensor has.
        keep, alpha: the weights.
    """
    rows = _rows(x.movedim(side - sides, -1), sides)
    return torch.baddbmm(_stack(factor), rows.mT, rows, beta=keep, alpha=alpha).view_as(factor)


def _rows(x: Tensor, sides: int) -> Tensor:
    """A stack of matrices whose rows run along the last side. One, too: products of a stack are rounded otherwise."""
    return x.reshape(-1, math.prod(x.shape[x.ndim - sides : -1]), x.shape[-1])


def _stack(matrix: Tensor) -> Tensor:
    return matrix.reshape(-1, *matrix.shape[-2:])


def eigenvectors(matrix: Tensor) -> Tensor:
    """Those of symmetric matrices as columns, that of the largest eigenvalue first."""
    try:
        found: Tensor = torch.linalg.eigh(matrix).eigenvectors
    except torch.linalg.LinAlgError:  # float32 does not always converge
        found = torch.linalg.eigh(matrix.double()).eigenvectors.to(matrix.dtype)
    return found.flip(-1)


def iterated(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis of about the eigenvectors brought closer to them, by one power iteration and a QR decomposition.

    Args:
        matrix: symmetric matrices.
        basis: orthogonal ones, whose columns are about its eigenvectors.

    Returns:
        The new basis, by falling eigenvalues as the old one estimates them; and which of the old columns each was.
    """
    product = torch.bmm(_stack(matrix), _stack(basis)).view_as(basis)
    order = (basis * product).sum(-2).argsort(dim=-1, descending=True)
    return torch.linalg.qr(product.take_along_dim(order.unsqueeze(-2), -1)).Q, order
