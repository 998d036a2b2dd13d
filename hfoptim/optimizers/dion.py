"""Dion: orthogonal steps of low rank, by one power iteration per step on a momentum that keeps what was left out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, Scalars, State, hyper, zeros
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.spectral import LR_SCALES, by_shape


def _rates(t: int, group: Group) -> Scalars:
    return {"forgotten": 1.0 - group["mu"], "eps": group["eps"]}


def _spans(form: Form, shape: torch.Size, rank_fraction: float, multiple: int) -> Iterator[tuple[int, int, int]]:
    """Of every part of a matrix: where its rows in Q begin, how many these are, and its rank."""
    start = 0
    for sides in form.sides(*shape[-2:]):
        shorter = min(sides)
        yield start, shorter, min(shorter, multiple * math.ceil(rank_fraction * shorter / multiple))
        start += shorter


@cache
def _basis(form: Form, rank_fraction: float, multiple: int) -> State:
    """Q of every part, below each other: noise at first, and the same in every sharding."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        spans = [*_spans(form, param.shape, rank_fraction, multiple)]
        rows, rank = sum(size for _, size, _ in spans), max(rank for *_, rank in spans)
        return torch.zeros((*param.shape[:-2], rows, rank), dtype=dtype, device=param.device)

    return State(init, of_shaped=True, drawn=True)


def _orthonormal(x: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span."""
    basis: Tensor = torch.linalg.qr(x.to(torch.promote_types(x.dtype, torch.float32)))[0]
    return basis.to(x.dtype)


@cache
def dion(form: Form, scale: str, rank_fraction: float, multiple: int, power_iters: int) -> Rule:
    """The rule for matrices of one form."""

    def low_rank(matrix: Tensor, basis: Tensor, eps: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The orthogonal part of a matrix along a basis, the matrix along it, and the next basis."""
        tall = matrix.shape[-2] >= matrix.shape[-1]
        high = matrix if tall else matrix.mT
        along = basis
        for _ in range(power_iters):
            left = _orthonormal(high @ along)
            along = high.mT @ left
        # A matrix of zeros leaves the basis as it was, and moves nothing.
        left, along = left.nan_to_num(), along.nan_to_num()
        some = (matrix != 0).any(dim=-1, keepdim=True).any(dim=-2, keepdim=True)
        left, along = torch.where(some, left, 0.0), torch.where(some, along, basis)
        unit = along / (along.norm(dim=-2, keepdim=True) + eps)
        step, taken = left @ unit.mT, left @ along.mT
        return (step, taken, unit) if tall else (step.mT, taken.mT, unit)

    def fn(grad: Any, param: Any, momentum: Any, basis: Any, h: Any) -> tuple[Any, Any, Any]:
        momentum, new_basis = momentum + grad, torch.zeros_like(basis)
        spans = _spans(form, momentum.shape, rank_fraction, multiple)
        steps, taken = [], []
        for matrix, (start, size, rank) in zip(form.cut(momentum), spans, strict=True):
            step, along, unit = low_rank(matrix, basis[..., start : start + size, :rank], h.eps)
            new_basis[..., start : start + size, :rank] = unit
            steps.append(by_shape(step, scale))
            taken.append(along)
        update, along = map(form.joined, (steps, taken))
        return update, momentum - along * h.forgotten, new_basis

    fn.__name__ = "dion"
    state = {"momentum": zeros, "Q": _basis(form, rank_fraction, multiple)}
    return Rule(fn, MATRIX, state, _rates, shape=form.shape)


class Dion(MatrixOptimizer):
    """Orthogonal steps of low rank, by one power iteration per step on a momentum that keeps what was left out.

    With G the gradient, P the parameter of r rows and c columns, r >= c (else all is transposed), Q of c rows and
    `rank_fraction` c columns, at first noise:

        M = M + G
        L = orthonormal basis of the columns of M Q                           (QR)
        R = M^T L
        M = M - (1 - mu) L R^T                                               (what has been taken is forgotten slowly)
        Q = R, with columns of length 1
        P = P - lr s L Q^T - lr weight_decay P,  s = sqrt(r / c)

    `power_iters` repeats the second and the third line. The update has singular values of about 1, as many as Q has
    columns; the rest of M waits. Q's noise goes by the place of the parameter in the optimizer: the same on every rank
    and in every sharding. Matrices that make queries, keys and values at once are taken in three parts. Everything else
    takes AdamW's step with lr f, f = `fallback_lr_scale`, see `Muon`, which also says what is a hidden matrix.

    State: `momentum` (M), `Q`; for everything else `exp_avg`, `exp_avg_sq`. Runs by torch's operations; no kernels are
    generated for it.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Ahn et al., Dion: Distributed Orthonormalized Updates, arXiv 2504.05295; microsoft/dion, `Dion`, with
        `qr_method="qr"`. Its default there, QR of a random sketch, gives the same columns but for signs and rounding,
        which the update does not depend on. Sharded matrices are gathered to one rank here, so that steps do not depend
        on the sharding; the authors' compressed communication is not here.
    """

    hidden_matrices = True
    names = (Name("dion"),)
    lr: float = hyper(0.01, "learning rate")
    mu: float = hyper(0.95, "what is kept of the part of M that was taken", most=1.0)
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    eps: float = hyper(1e-8, "added to the lengths of Q's columns; AdamW's eps")
    rank_fraction: float = hyper(1.0, "columns of Q, as a share of the shorter side", above=0.0, most=1.0)
    rank_multiple_of: int = hyper(1, "the columns of Q are a multiple of that, or as many as the shorter side", low=1)
    power_iters: int = hyper(1, "power iterations per step", low=1)
    adjust_lr_fn: str = hyper("rms_to_rms", "the factor s", choices=LR_SCALES)

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        rank = group["rank_fraction"], group["rank_multiple_of"]
        return dion(form, group["adjust_lr_fn"], *rank, group["power_iters"])
