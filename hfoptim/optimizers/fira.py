"""Fira: GaLore's step, and the rest of the gradient scaled as that scales its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.optimizers.adam import AdamW
from hfoptim.optimizers.shared.low_rank import (
    ONE_SIDED,
    Finish,
    LowRank,
    Projection,
    last_norm,
    limit,
    scale_of,
    scaled_norm,
)


def _alpha(group: Group) -> Scalars:
    return {"alpha": group["alpha"]}


def fira(
    projection: Projection,
    grad: Tensor,
    low: Tensor,
    update: Tensor,
    basis: Sequence[Tensor],
    last: Tensor,
    h: Any,
) -> tuple[Tensor, Tensor]:
    """The update in the subspace, projected back, and what the subspace leaves out of the gradient, scaled alike."""
    dims = (projection.dim,)
    scale = scale_of(update, low, dims)
    # Memory for a large matrix costs more than the arithmetic: the products' is used.
    rest = projection.up(low * -h.alpha, basis).add_(grad)
    factor, norm = limit(scaled_norm(rest, scale, dims), last)
    return projection.up(update * h.alpha, basis).addcmul_(rest, scale * factor), norm


_FIRA = Finish(fira, lambda: {"scaling_grad": last_norm}, _alpha)


class FiraAdamW(LowRank, AdamW):
    """AdamW in GaLore's subspace, and the rest of the gradient with the scales that AdamW gives its part (Fira).

    With G the gradient of a matrix P of r rows and c columns, r >= c, t the step; for r < c the same of the transposed:

        B = the leading `rank` right singular vectors of G, in rows    (where t - 1 is a multiple of update_proj_gap)
        R = G B^T
        M = beta1 M + (1 - beta1) R
        V = beta2 V + (1 - beta2) R^2
        U = M / (sqrt(V) + eps)
        S = (G - alpha R B)_i |U_i| / (|R_i| + 1e-8) for every row i
        S = S / max(1, |S| / (1.01 (n + 1e-8)));  n = |S|                                   (not at first)
        P = P - lr sqrt(1 - beta2^t) / (1 - beta1^t) (alpha U B + S)
        P = P - lr weight_decay P

    Which parameters are projected is said as for `GaLoreAdamW`; the others are stepped by `AdamW`. The name "fira" has
    a rank of 128. State: `ortho_matrix` (B), `scaling_grad` (n), `exp_avg` (M), `exp_avg_sq` (V).

    Follows the author's code, in which alpha multiplies also what is taken out of G. The singular vectors of a
    gradient in double precision are computed in that, there in float32. With "reverse_std", "left" and "right" the
    scales are those of what is not made short. pytorch_optimizer 4.1 calls alpha `scale`, and renews the subspace one
    step earlier, but for the first.

    Source:
        Chen et al., arXiv 2410.01623; https://github.com/xichen-fy/Fira.
    """

    hidden_matrices = True
    finish = _FIRA
    names = (Name("fira", options={"rank": 128}, aliases=("fira_adamw",)),)
    _: KW_ONLY
    alpha: float = hyper(0.25, "factor of the part of the gradient in the subspace")
    proj_type: str = ONE_SIDED
