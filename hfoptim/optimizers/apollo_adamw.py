"""APOLLO of 2024: gradients scaled as AdamW would scale them, as a random projection of few rows or columns tells."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, State, hyper
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


def _scale(group: Group) -> Scalars:
    return {"scale": math.sqrt(group["scale"])}


@cache
def _finish(by_channel: bool, front: bool, limits: bool) -> Finish:
    """From an update in the subspace to that of the matrix.

    Args:
        by_channel: a scale for every row or column, not one for all.
        front: the factor comes before the limit of the norm's growth.
        limits: there is one.
    """

    def apollo_adamw(
        projection: Projection, grad: Tensor, low: Tensor, update: Tensor, basis: Sequence[Tensor], *args: Any
    ) -> tuple[Tensor, ...]:
        *last, h = args
        dims = (projection.dim,) if by_channel else (-2, -1)
        scale = scale_of(update, low, dims)
        if not limits:
            return (grad * (scale * h.scale),)
        norm = scaled_norm(grad, scale, dims)
        factor, norm = limit(norm * h.scale if front else norm, *last)
        return grad * (scale * factor * h.scale), norm

    states: Callable[[], Mapping[str, State]] = (lambda: {"scaled_grad": last_norm}) if limits else dict
    return Finish(apollo_adamw, states, _scale)


class APOLLOAdamW(LowRank, AdamW):
    """Gradients scaled row by row as AdamW would, as known from a random projection (APOLLO); AdamW for the rest.

    With G the gradient of a matrix P of r rows and c columns, r >= c, t the step; for r < c the same of the transposed:

        B = `rank` rows of random numbers of variance 1 / rank      (new where t - 1 is a multiple of update_proj_gap)
        R = G B^T
        M = beta1 M + (1 - beta1) R
        V = beta2 V + (1 - beta2) R^2
        U = M / (sqrt(V) + eps)
        S = G_i |U_i| / (|R_i| + 1e-8) for every row i, or G |U| / (|R| + 1e-8) with scale_type="tensor"
        S = S / max(1, |S| / (1.01 (n + 1e-8)));  n = |S|                   (not at first, nor with disable_nl)
        P = P - lr sqrt(1 - beta2^t) / (1 - beta1^t) sqrt(scale) S
        P = P - lr weight_decay P

    APOLLO-Mini, the name "apollo_mini", has `rank=1, scale_type="tensor", scale=128`: state of a row and a column.
    Which parameters are projected is said as for `GaLoreAdamW`; the others are stepped by `AdamW`. "apollo_adamw" has
    transformers' rank of 128. After a gradient of zeros the norm of a matrix's steps begins anew, at 1e-8, and grows by
    1.01 each step, as the author's does. State: `ortho_matrix` (B times the root of the rank), `exp_avg` (M),
    `exp_avg_sq` (V), `scaled_grad` (n).

    Random numbers go by the step and by the parameter's place in the optimizer, the same on every device and
    rank; apollo_torch draws others, from a generator for each parameter. With `proj="svd"` the projection is GaLore's.
    With "reverse_std", "left" and "right" the scales are those of what is not made short, where apollo_torch always
    takes rows of tall matrices, and fails. pytorch_optimizer 4.1 scales the projected gradient and projects it back,
    and draws from torch's generator.

    Source:
        Zhu et al., arXiv 2412.05270; https://github.com/zhuhanqing/APOLLO.
    """

    hidden_matrices = True
    names = (
        Name("apollo_adamw", options={"rank": 128}),
        Name(
            "apollo_mini",
            "APOLLO with one scale for a matrix, known from a projection on a single direction",
            options={"rank": 1, "scale_type": "tensor", "scale": 128.0},
        ),
    )
    scale_front: bool = hyper(False, "the factor sqrt(scale) comes before the growth of the norm is limited")
    disable_nl: bool = hyper(False, "the growth of the norm is not limited")
    _: KW_ONLY
    proj: str = hyper(
        "random", "what the subspace is made of: random numbers, or singular vectors", choices=("random", "svd")
    )
    scale_type: str = hyper(
        "channel", "what has a scale: every row or column, or the matrix", choices=("channel", "tensor")
    )
    scale: float = hyper(1.0, "square of the factor of the scaled gradient")
    proj_type: str = ONE_SIDED

    def projection_for(self, shape: Sequence[int], group: Group) -> Projection:
        return Projection.of(group["rank"], group["proj_type"], shape, random=group["proj"] == "random")

    def finish_for(self, group: Group) -> Finish:
        return _finish(group["scale_type"] == "channel", group["scale_front"], not group["disable_nl"])
