"""Preconditioners that are Kronecker products: one square matrix for each side of a tensor, its factors.

The functions work on the last dimensions of what they get; those before them are a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from hfoptim.engine import Group, Scalars, State
from hfoptim.engine.backends import products


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
        backwards: whether that begins at the last side.
    """

    ndim: int
    largest: int = 0
    channels_last: bool = False
    backwards: bool = False

    def sides(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Those of a tensor of that shape as its factors see it."""
        ordered = (shape[0], shape[3], *shape[1:3]) if self.channels_last else tuple(shape)
        if self.backwards:
            return merged(ordered[::-1], self.largest)[::-1]
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
        """State that begins as a square matrix of zeros for one side; for a stack of tensors, one for each."""

        def init(param: Tensor, dtype: torch.dtype) -> Tensor:
            stack, shape = param.shape[: param.ndim - self.ndim], param.shape[param.ndim - self.ndim :]
            size = self.sides(shape)[side]
            return torch.zeros(*stack, size, size, dtype=dtype, device=param.device)

        return State(init, of_shaped=True)


# Of stacked blocks along each side: where they begin, how many there are, and the entries of each.
Kind = tuple[tuple[int, int, int], ...]


def _region(x: Tensor, kind: Kind) -> Tensor:
    """What the blocks of one kind are cut from."""
    for i, (begin, count, size) in enumerate(kind):
        x = x.narrow(i - len(kind), begin, count * size)
    return x


class Blocks(NamedTuple):
    """How a tensor is cut into blocks of at most `size` entries along each side.

    Blocks of equal shape are stacked, in a dimension before their own: the whole ones, and those at the ends of sides
    that `size` does not divide.
    """

    folding: Folding
    size: int

    def kinds(self, shape: Sequence[int]) -> list[Kind]:
        """Those of a tensor of that shape: whole blocks, and what is left at the ends of sides."""
        along_sides = []
        for side in self.folding.sides(shape):
            whole = side // self.size * self.size
            ends = [(0, whole // self.size, self.size), (whole, 1, side - whole)]
            along_sides.append([end for end in ends if end[1] * end[2]])
        return list(product(*along_sides))

    def cut(self, x: Tensor) -> list[Tensor]:
        """The stacks of blocks of a tensor, or of a stack of tensors."""
        folded = self.folding.fold(x)
        kinds = self.kinds(x.shape[x.ndim - self.folding.ndim :])
        batch = folded.shape[: folded.ndim - len(kinds[0])]
        parts = []
        for kind in kinds:
            part = _region(folded, kind)
            split = part.reshape(*batch, *(n for _, count, size in kind for n in (count, size)))
            at = len(batch)
            counts, sizes = range(at, at + 2 * len(kind), 2), range(at + 1, at + 2 * len(kind), 2)
            apart = split.permute(*range(at), *counts, *sizes)
            parts.append(apart.reshape(*batch, -1, *(size for _, _, size in kind)))
        return parts

    def join(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """The way back, to the shape and the strides of `like`."""
        kinds = self.kinds(like.shape[like.ndim - self.folding.ndim :])
        if len(kinds) == 1 and all(count == 1 for _, count, _ in kinds[0]):
            return self.folding.unfold(parts[0], like)
        batch = parts[0].shape[: parts[0].ndim - len(kinds[0]) - 1]
        joined = parts[0].new_empty(*batch, *self.folding.sides(like.shape[like.ndim - self.folding.ndim :]))
        for kind, part in zip(kinds, parts, strict=True):
            at, sides = len(batch), len(kind)
            apart = part.reshape(*batch, *(count for _, count, _ in kind), *part.shape[-sides:])
            split = apart.permute(*range(at), *(at + i + j for i in range(sides) for j in (0, sides)))
            _region(joined, kind).copy_(split.reshape(*batch, *(count * size for _, count, size in kind)))
        return self.folding.unfold(joined, like)

    def square(self, kind: int, side: int, value: float = 0.0) -> State:
        """State of one kind of blocks: for each a square matrix for one side, which begins as a multiple of one."""

        def init(param: Tensor, dtype: torch.dtype) -> Tensor:
            kinds = self.kinds(param.shape)[kind]
            size = kinds[side][2]
            one = torch.eye(size, dtype=dtype, device=param.device) * value
            return one.repeat(math.prod(count for _, count, _ in kinds), 1, 1)

        return State(init, of_shaped=True)


def factor_rates(t: int, group: Group) -> Scalars:
    """Of averaged factors, the weights of old and new; whether the step is their first, and whether bases are due."""
    beta = group["betas"][1] if group["shampoo_beta"] < 0.0 else group["shampoo_beta"]
    due = (t - 1) % group["precondition_frequency"] == 0
    return {"keep": beta, "alpha": 1.0 - beta, "first": t == 1, "refresh": due}


def at_sides(matrices: Sequence[Tensor], factored: Sequence[bool]) -> list[Tensor | None]:
    """The matrices in the places of the sides that have one, None in the others."""
    given = iter(matrices)
    return [next(given) if has else None for has in factored]


def along(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """The tensor with each of its sides multiplied by a matrix: over i, `x[..i..] matrix[i, j]`; None leaves a side."""
    for matrix in matrices:
        x = x.movedim(-len(matrices), -1)
        if matrix is not None:
            x = torch.bmm(_rows(x, len(matrices)), _stack(matrix)).reshape(*x.shape[:-1], matrix.shape[-1])
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
    rows, old = _rows(x.movedim(side - sides, -1), sides), _stack(factor)
    return products.commuting(rows.mT, rows, old, keep, alpha).view_as(factor)


def _rows(x: Tensor, sides: int) -> Tensor:
    """A stack of matrices whose rows run along the last side. One, too: products of a stack are rounded otherwise."""
    return x.reshape(-1, math.prod(x.shape[x.ndim - sides : -1]), x.shape[-1])


def _stack(matrix: Tensor) -> Tensor:
    return matrix.reshape(-1, *matrix.shape[-2:])


def eigenvectors(matrix: Tensor) -> Tensor:
    """Those of symmetric matrices as columns, that of the largest eigenvalue first."""
    return _decomposed(matrix)[1].flip(-1)


def _decomposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # float32 does not always converge
        values, vectors = (found.to(matrix.dtype) for found in torch.linalg.eigh(matrix.double()))
    return values, vectors


def inverse_root(matrix: Tensor, root: int, eps: float) -> Tensor:
    """`(matrix + eps)^(-1 / root)` of symmetric matrices without negative eigenvalues, but for rounding."""
    values, vectors = _decomposed(matrix)
    powers = (values - values.amin(-1, keepdim=True).clamp(max=0.0) + eps) ** (-1.0 / root)
    stack = _stack(vectors * powers.unsqueeze(-2))
    return torch.bmm(stack, _stack(vectors).mT).view_as(matrix)


def newton_inverse_root(matrix: Tensor, root: int, eps: float, steps: int) -> Tensor:
    """About `inverse_root` for a root of 2 or 4, by Newton's iteration of Denman and Beavers: products alone.

    How close it comes, eigenvalue by eigenvalue, depends on its share of the largest: each of the steps multiplies what
    is far below by 1.5^2.
    """
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    stack = _stack(matrix) + eps * one
    scale = eigenvalue_bound(stack)
    y, z = _denman_beavers(stack / scale, one, steps, inverse=root == 2)
    if root == 4:
        y, z = _denman_beavers(y, one, steps, inverse=True)
    return (z / scale ** (1.0 / root)).view_as(matrix)


def chebyshev_inverse_root(matrix: Tensor, root: int, eps: float, degree: int) -> Tensor:
    """About (A / s + eps)^(-1 / root) s^(-1 / root), s a bound of A's eigenvalues, by a polynomial in A.

    Products alone: Clenshaw's recurrence B_k = 2 T B_(k+1) - B_(k+2) + c_k, T = 2 A / s - 1, up to T B_1 - B_2 + c_0.
    """
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    stack = _stack(matrix)
    scale = eigenvalue_bound(stack)
    turn = stack * (2.0 / scale) - one
    *rest, before, last = chebyshev_coefficients(root, eps, degree)
    later, found = last * one, 2.0 * last * turn + before * one
    for number in range(len(rest) - 1, -1, -1):
        product = torch.baddbmm(rest[number] * one, turn, found, alpha=2.0 if number else 1.0)
        later, found = found, product.sub_(later)
    return (found / scale ** (1.0 / root)).view_as(matrix)


@cache
def chebyshev_coefficients(root: int, eps: float, degree: int, points: int = 10_000) -> tuple[float, ...]:
    """Chebyshev's series of (x + eps)^(-1 / root) for x in [0, 1], cut after a degree; integrals as sums of points."""
    angles = (torch.arange(points, dtype=torch.float64) + 0.5) * (math.pi / points)
    values = (0.5 * angles.cos() + (0.5 + eps)) ** (-1.0 / root)
    orders = torch.arange(degree + 1, dtype=torch.float64).unsqueeze(1)
    first, *others = ((orders * angles).cos() @ values * (2.0 / points)).tolist()
    return (first / 2.0, *others)


def eigenvalue_bound(matrix: Tensor) -> Tensor:
    """What no eigenvalue of symmetric matrices is above, nor far below: the root of the sum of their 8th powers."""
    size = matrix.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny)
    scaled = matrix / size
    fourth = torch.bmm(scaled, scaled)
    fourth = torch.bmm(fourth, fourth)
    norm: Tensor = torch.linalg.vector_norm(fourth, dim=(-2, -1), keepdim=True)
    return size * norm**0.25


def _denman_beavers(y: Tensor, one: Tensor, steps: int, inverse: bool) -> tuple[Tensor, Tensor]:
    """About the roots of matrices Y with eigenvalues in (0, 1], and of their inverses; the other one is unfinished.

    Y = Y E, Z = E Z with E = (3 - Z Y) / 2, from Z = 1.
    """
    z = turn = 1.5 * one - 0.5 * y
    y = torch.bmm(y, turn)
    for step in range(1, steps):
        turn = torch.baddbmm(1.5 * one, z, y, alpha=-0.5)
        last = step == steps - 1
        y = y if last and inverse else torch.bmm(y, turn)
        z = z if last and not inverse else torch.bmm(turn, z)
    return y, z


def iterated(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """A basis of about the eigenvectors brought closer to them, by one power iteration and a QR decomposition.

    Args:
        matrix: symmetric matrices.
        basis: orthogonal ones, whose columns are about its eigenvectors.

    Returns:
        The new basis, by falling eigenvalues as the old one estimates them; and which of the old columns each was.
    """
    moved = _moved(matrix, basis)
    order = (basis * moved).sum(-2).argsort(dim=-1, descending=True)
    return torch.linalg.qr(moved.gather(-1, order.unsqueeze(-2).expand(moved.shape))).Q, order


def iterated_in_place(matrix: Tensor, basis: Tensor) -> Tensor:
    """The same with every column where it was."""
    new: Tensor = torch.linalg.qr(_moved(matrix, basis)).Q
    return new


def _moved(matrix: Tensor, basis: Tensor) -> Tensor:
    return torch.bmm(_stack(matrix), _stack(basis)).view_as(basis)
