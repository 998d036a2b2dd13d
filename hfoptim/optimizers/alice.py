"""Alice: Adam in a subspace that is switched now and then, and what is outside of it divided by its size."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, Scalars, State, ema, hyper, nonnegative, zeros, zeros_over
from hfoptim.optimizers.shared.low_rank import ONE_SIDED, Projection, last_norm, limit, norm_of, of_low
from hfoptim.optimizers.shared.matrices import Form, WithFallback, as_matrix

# Squares of columns that have nothing outside of the subspace.
_TINY = 1e-30


def _is_due(t: int, group: Group) -> bool:
    """Whether step t is the first one in a new subspace."""
    return t == 1 or t % group["update_proj_gap"] == 0


def _scalars(t: int, group: Group) -> Scalars:
    beta1, beta2, beta3 = group["low_rank_betas"]
    lr = float(group["lr"])
    return {
        **{"alpha1": 1.0 - beta1, "alpha2": 1.0 - beta2, "alpha3": 1.0 - beta3},
        **{"first": float(t == 1), "renew": float(_is_due(t, group))},
        **{"eps": group["eps"], "outside": group["alpha_c"], "growth": group["gamma"]},
        **{"lr": lr * group["alpha"], "decay": lr * group["weight_decay"]},
    }


def _signed(columns: Tensor) -> Tensor:
    """Columns whose largest entry is positive: eigenvectors are known but for their sign, and moments are carried."""
    largest = columns.gather(-2, columns.abs().argmax(-2, keepdim=True))
    signed: Tensor = columns * (1.0 - 2.0 * (largest < 0.0).to(columns.dtype))
    return signed


def _leading(grad: Tensor, old: Tensor, tracked: Tensor | None, h: Any) -> Tensor:
    """The leading eigenvectors, by one step of subspace iteration; at the first step those of the gradient."""
    rank = old.shape[-1]
    if h.first:
        # Numbers that are not finite would raise an error, here and not where they came from.
        left: Tensor = torch.linalg.svd(torch.nan_to_num(grad, 0.0, 0.0, 0.0), full_matrices=False)[0]
        return _signed(left[..., :rank])

    def times(x: Tensor) -> Tensor:
        found: Tensor = grad @ (grad.mT @ x) * h.alpha3
        return found if tracked is None else found + old @ (tracked @ (old.mT @ x)) * (1.0 - h.alpha3)

    turned = torch.linalg.qr(torch.nan_to_num(times(old), 0.0, 0.0, 0.0))[0]
    small = torch.nan_to_num(turned.mT @ times(turned), 0.0, 0.0, 0.0)
    return _signed(turned @ torch.linalg.eigh(small)[1].flip(-1))


def _switched(found: Tensor, choice: Tensor, leading: int) -> Tensor:
    """The first columns, and others chosen of a basis of what is orthogonal to all; the next ones where it has few."""
    rank = found.shape[-1]
    if leading == rank:
        return found
    complement = torch.linalg.qr(found, mode="complete")[0][..., rank:]
    count = min(rank - leading, complement.shape[-1])
    order = choice[..., : complement.shape[-1]].argsort(-1, descending=True)[..., None, :count]
    chosen = complement.gather(-1, order.expand(*complement.shape[:-1], count))
    return torch.cat([found[..., : rank - count], chosen], -1)


@cache
def alice(projection: Projection, form: Form, leading: int, tracks: bool, rows: int) -> Rule:
    """The rule of matrices.

    Args:
        projection: the subspace.
        form: how a parameter is a matrix.
        leading: how many eigenvectors are kept at a switch.
        tracks: whether products of projected gradients are averaged.
        rows: the length of the side that is made short.
    """
    turned = projection.side == "right"
    length = math.sqrt(rows - projection.rank)

    def upright(x: Tensor) -> Tensor:
        """As if columns were made short, which is what the formulas are for."""
        return x.mT if turned else x

    def fn(grad: Tensor, param: Tensor, old: Tensor, choice: Tensor, *args: Any) -> tuple[Any, ...]:
        *tracked, first, second, squares, last, h = args
        grad, basis = upright(grad), upright(old)
        if h.renew:
            found = _leading(grad, basis, tracked[0] if tracks else None, h)
            basis = _switched(found, choice, min(leading, projection.rank))
        low = basis.mT @ grad
        first = ema(first, upright(low), h.alpha1)
        second = ema(second, upright(low * low), h.alpha2)
        tracked = [ema(each, low @ low.mT, h.alpha3) for each in tracked]
        update = basis @ upright(first / (second.sqrt() + h.eps))
        if length and h.outside:
            rest = torch.sub(grad, basis @ low)
            squares = ema(squares, upright((rest * rest).sum(-2, keepdim=True)), h.alpha1)
            rest = rest.mul_(upright(squares).clamp(min=_TINY).rsqrt() * length)
            factor, last = limit(norm_of(rest, (-2, -1)), last, h.growth)
            update = update.add_(rest.mul_(factor * h.outside))
        renewed = upright(basis) if h.renew else None
        return upright(update), renewed, None, *tracked, first, second, squares, last

    def small(param: Tensor, dtype: torch.dtype) -> Tensor:
        return param.new_zeros((*param.shape[:-2], projection.rank, projection.rank), dtype=dtype)

    def numbers(param: Tensor, dtype: torch.dtype) -> Tensor:
        return param.new_zeros((*param.shape[:-2], rows), dtype=dtype)

    fn.__name__ = "alice"
    state = {
        **projection.state(),
        "choice": State(numbers, of_shaped=True, drawn=True, redrawn=_is_due),
        **({"tracked": State(small, of_shaped=True)} if tracks else {}),
        "exp_avg": of_low(zeros, projection),
        "exp_avg_sq": of_low(nonnegative, projection),
        "outside_sq": zeros_over(-1 if turned else -2),
        "outside_norm": last_norm,
    }
    return Rule(fn, MATRIX, state, _scalars, shape=form.shape)


class Alice(WithFallback):
    """Adam in a subspace of a matrix's eigenvectors and others drawn by chance, and a step outside of it.

    With G the gradient of a matrix P of m rows and n columns, m <= n, t the step (m > n: the same of the transposed);
    squares of entries, and A of m rows and r = `rank` columns:

        where t = 1, or t a multiple of update_proj_gap:
            B = beta3 A Q A^T + (1 - beta3) G G^T
            E = the r leading eigenvectors of B, by one step of subspace iteration from A       (at first exactly)
            A = the first `leading` columns of E, and r - leading vectors chosen at random from an orthonormal basis of
                what is orthogonal to E
        S = A^T G
        Q = beta3 Q + (1 - beta3) S S^T
        M = beta1 M + (1 - beta1) S
        V = beta2 V + (1 - beta2) S^2
        R = G - A S
        p = beta1 p + (1 - beta1) (sums of the squares of R's columns)
        C = sqrt(m - r) R diag(p)^(-1/2)
        C = C / max(1, |C| / (gamma c));  c = |C|                                           (not at first)
        P = P - lr alpha (A (M / (sqrt(V) + eps)) + alpha_c C) - lr weight_decay P

    with beta1, beta2, beta3 = low_rank_betas. Without tracking (beta3 = 0, the name "alice_0") there is no Q. M and V
    go on in the new subspace as they were. Where less than r - leading vectors are orthogonal to E, the next columns of
    E make up for them. AdamW takes everything else, with lr f, f = `fallback_lr_scale`; `Muon` says what is a hidden
    matrix. The paper trains the head with Adam at a learning rate of 1e-3 beside 0.02: f = 0.05.

    State: `ortho_matrix` (A), `tracked` (Q), `exp_avg` (M), `exp_avg_sq` (V), `outside_sq` (p), `outside_norm` (c),
    `choice`: numbers by which vectors are chosen. They go by the step and by the parameter's place in the optimizer:
    the same on every rank, and after a checkpoint.

    Follows the paper; of eigenvectors, whose sign is free, the largest entry is positive here. pytorch_optimizer 4.1
    begins with A = 0, from which subspace iteration leads to unit vectors and not to eigenvectors; takes the rows for m
    also where they are more; draws from torch's generator; keeps p above 1e-8, and finds it as a difference of sums,
    which rounding can make negative.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Gong, Scetbon, Ma and Meeds, Towards Efficient Optimizer Design for LLM via Structured Fisher Approximation with
        a Low-Rank Extension, arXiv 2502.07752, algorithms 2 to 4. Defaults of pytorch_optimizer.
    """

    hidden_matrices = True
    names = (
        Name("alice"),
        Name(
            "alice_0",
            "Alice without the average of gradients' products",
            options={"low_rank_betas": (0.9, 0.9, 0.0)},
        ),
    )
    lr: float = hyper(0.02, "learning rate")
    low_rank_betas: tuple[float, float, float] = hyper(
        (0.9, 0.9, 0.999), "decay rates of M and p, of V, and of Q; with 0 as the last one there is no Q"
    )
    alpha: float = hyper(0.3, "factor of lr for matrices")
    alpha_c: float = hyper(0.4, "factor of the step outside of the subspace")
    update_proj_gap: int = hyper(200, "steps from one subspace to the next", low=1)
    rank: int = hyper(256, "columns of the subspace", low=1)
    gamma: float = hyper(1.01, "how many times as long as the last one C may be", above=0.0)
    leading: int = hyper(40, "eigenvectors that are kept at a switch", low=1)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    eps: float = hyper(1e-8, "added to the root of V, and AdamW's")
    _: KW_ONLY
    proj_type: str = ONE_SIDED

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        if form is None:
            return super().rule_for(param, group)
        shape = as_matrix(param.shape) if form.flattened else param.shape
        projection = Projection.short(group, shape)
        rows = shape[-1] if projection.side == "right" else shape[-2]
        return alice(projection, form, group["leading"], group["low_rank_betas"][2] > 0.0, rows)
