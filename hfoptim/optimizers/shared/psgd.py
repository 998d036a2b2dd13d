"""Preconditioners of PSGD: Q^T Q, with Q a Kronecker product of one factor per dimension, a matrix or a diagonal.

Tensors here have one dimension more than a parameter, the first: a batch of parameters of equal shape. A factor is
(batch, n, n), or (batch, n) where it is diagonal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from hfoptim.engine import State, storage
from hfoptim.optimizers.shared.kronecker import along

Shape = Callable[[Sequence[int]], tuple[int, ...]]


@cache
def flattening(ends: tuple[int, int] | None) -> Shape:
    """In which shape a rule sees a parameter: a number as a vector, and of some dimensions one.

    Args:
        ends: first and last of these dimensions, counted from either end; None: all stay.
    """

    def shape(own: Sequence[int]) -> tuple[int, ...]:
        dims = tuple(own) or (1,)
        if ends is None:
            return dims
        first, last = (end if end >= 0 else len(dims) + end for end in ends)
        last = min(last, len(dims) - 1)
        return (*dims[:first], math.prod(dims[first : last + 1]), *dims[last + 1 :]) if first <= last else dims

    return shape


def factor(dim: int, diagonal: bool, scale: float) -> State:
    """The state that is the factor of a dimension, `scale` times the unit matrix."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        size = param.shape[dim]
        one = torch.ones(size, dtype=dtype, device=param.device)
        return scale * (one if diagonal else torch.eye(size, dtype=dtype, device=param.device))

    return State(init, of_shaped=True)


def batch(x: Tensor, ndim: int) -> Tensor:
    """A tensor of `ndim` dimensions, or several of them, as a batch."""
    return x.reshape(-1, *x.shape[x.ndim - ndim :])


def _spread(diagonal: Tensor, x: Tensor, dim: int) -> Tensor:
    """A diagonal factor in the shape in which it multiplies the tensor."""
    return diagonal.reshape(len(x), *(size if i == dim else 1 for i, size in enumerate(x.shape[1:])))


def applied(x: Tensor, factors: Sequence[Tensor], transposed: bool = False) -> Tensor:
    """The tensor multiplied along each dimension by its factor, or by the factor's transpose."""
    x = along(x, [None if q.ndim == 2 else q if transposed else q.mT for q in factors])
    for dim, q in enumerate(factors):
        x = x * _spread(q, x, dim) if q.ndim == 2 else x
    return x


def whitened(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor multiplied along each dimension by Q^T Q."""
    return applied(applied(x, factors), factors, transposed=True)


def solved(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor multiplied along each dimension by the inverse of the transposed factor, which is upper triangular."""
    for dim, q in enumerate(factors):
        if q.ndim == 2:
            x = x / _spread(q, x, dim)
        else:
            moved = x.movedim(1 + dim, -1)
            rows = torch.linalg.solve_triangular(q, moved.reshape(len(x), -1, len(q[0])), upper=True, left=False)
            x = rows.reshape(moved.shape).movedim(-1, 1 + dim)
    return x


def second_moment(x: Tensor, dim: int, diagonal: bool) -> Tensor:
    """The products of the tensor's slices along a dimension, all pairs of them; or each with itself."""
    rows = x.movedim(1 + dim, -1).reshape(len(x), -1, x.shape[1 + dim])
    return rows.square().sum(1) if diagonal else rows.mT @ rows


def norm_bound(x: Tensor) -> Tensor:
    """A lower bound of the spectral norm of symmetric matrices, 0 for those of zeros: two products with a vector."""
    largest = x.abs().amax((-2, -1), keepdim=True)
    scaled = x / largest
    longest = scaled.square().sum(-1, keepdim=True).argmax(-2, keepdim=True)
    vector = torch.take_along_dim(scaled, longest, -2) @ scaled
    bound = (vector / vector.norm(dim=-1, keepdim=True) @ scaled).norm(dim=-1, keepdim=True)
    return torch.where(largest > 0, largest * bound, largest)


# Seed and number of the vectors that `subspace_bound` begins with, the same at every step.
SUBSPACE, VECTORS = 20251, 32


def subspace_bound(x: Tensor) -> Tensor:
    """A closer lower bound of the spectral norm of (skew-)symmetric matrices, 0 for those of zeros.

    The longest row, each time with another vector on its side of it, goes through the matrix four times.
    """
    largest = x.abs().amax((-2, -1), keepdim=True)
    scaled = x / largest
    longest = scaled.square().sum(-1, keepdim=True).argmax(-2, keepdim=True)
    row = torch.take_along_dim(scaled, longest, -2)
    vectors = storage.normal((VECTORS, x.shape[-1]), SUBSPACE, x.dtype, x.device)
    vectors = row + (vectors * row).sum(-1, keepdim=True).sign() * vectors
    for _ in range(2):
        vectors = vectors @ scaled
        vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + torch.finfo(x.dtype).tiny) @ scaled
    bound = vectors.norm(dim=-1, keepdim=True).amax(-2, keepdim=True)
    return torch.where(largest > 0, largest * bound, largest)


def balanced(factors: Sequence[Tensor]) -> list[Tensor]:
    """The factors with equal largest entries, and the same product."""
    largest = torch.stack([q.abs().flatten(1).amax(1) for q in factors])
    scales = largest.prod(0) ** (1 / len(factors)) / largest
    return [q * scale.reshape(-1, *[1] * (q.ndim - 1)) for q, scale in zip(factors, scales, strict=True)]


def noise(x: Tensor, t: int, places: Tensor) -> Tensor:
    """Normal noise like a batch of tensors: each one's by the step and its place."""
    seeds = storage.row_seed(t, places.reshape(-1).to(torch.int64))
    return storage.normal(x.shape[1:], seeds, x.dtype, x.device)
