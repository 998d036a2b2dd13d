"""Dion2 and NorDion2: orthogonal steps of the rows or columns whose momentum is largest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, MatrixFunction, Name, Rule, Scalars, ema, hyper, zeros, zeros_over
from hfoptim.optimizers.shared import newton_schulz
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, Triple, newton_schulz_of
from hfoptim.optimizers.shared.spectral import LR_SCALES, by_shape, norm_of_matrix

# Added to the roots of NorDion2's means, and the least norm of its updates.
_TINY = 1e-8


def _rates(t: int, group: Group) -> Scalars:
    return {"kept": group["ef_decay"], "alpha2": 1.0 - group["beta2"], "eps": group["eps"]}


def _largest(part: Tensor, dim: int, fraction: float) -> tuple[Tensor, Tensor]:
    """The rows (dim=-2) or columns with the largest sums of magnitudes, and where they are."""
    count = max(1, math.ceil(fraction * part.shape[dim]))
    places = part.abs().sum(dim=-1 if dim == -2 else -2).topk(count, dim=-1, sorted=True).indices
    places = places.unsqueeze(-1 if dim == -2 else -2)
    shape = list(part.shape)
    shape[dim] = count
    places = places.expand(shape)
    return part.gather(dim, places), places


@cache
def dion2(form: Form, iteration: NewtonSchulz, scale: str, fraction: float, normed: bool) -> Rule:
    """The rule for matrices of one form.

    Args:
        form: how a parameter is matrices.
        iteration: makes them orthogonal.
        scale: one of `LR_SCALES`.
        fraction: of the rows or columns that take a step.
        normed: always rows, and these divided by the roots of the moving averages of their mean squares (NorDion2).
    """

    def chosen(parts: Sequence[Tensor], eps: Any) -> list[Tensor]:
        dims = [-2 if normed or part.shape[-2] <= part.shape[-1] else -1 for part in parts]
        found = [_largest(part, dim, fraction) for part, dim in zip(parts, dims, strict=True)]
        made = iteration.each([each for each, _ in found], eps)
        each = zip(parts, dims, made, found, strict=True)
        return [torch.zeros_like(part).scatter_(dim, places, some) for part, dim, some, (_, places) in each]

    @MatrixFunction
    def orthogonal(stacks: Sequence[Tensor], eps: Any) -> list[Tensor]:
        """Of the largest rows or columns, zero elsewhere."""
        return form.all(lambda parts: chosen(parts, eps), stacks)

    @MatrixFunction
    def sized(stacks: Sequence[Tensor]) -> list[Tensor]:
        return form.all(lambda parts: [by_shape(part, scale) for part in parts], stacks)

    def fn(grad: Any, param: Any, momentum: Any, *args: Any) -> tuple[Any, ...]:
        *second, h = args
        momentum = momentum + grad
        update = orthogonal(momentum, h.eps)
        # Of what was chosen only that is zero which was so before, and stays it.
        momentum = torch.where(update != 0.0, momentum * h.kept, momentum)
        if not normed:
            return sized(update), momentum
        rows = ema(second[0], (update * update).mean(dim=-1, keepdim=True), h.alpha2)
        even = update / (rows.sqrt() + _TINY)
        size, whole = norm_of_matrix(even), norm_of_matrix(update)
        rows = torch.where(update.abs().sum(dim=-1, keepdim=True) > 0.0, rows, second[0])
        return sized(even * (whole / torch.where(size < _TINY, _TINY, size))), momentum, rows

    fn.__name__ = "nordion2" if normed else "dion2"
    state = {"momentum": zeros, **({"variance_neuron": zeros_over(-1)} if normed else {})}
    return Rule(fn, MATRIX, state, _rates, shape=form.shape)


class Dion2(MatrixOptimizer):
    """Orthogonal steps of the rows or columns whose momentum is largest; the others wait.

    With G the gradient, P the parameter of r rows and c columns:

        M = M + G
        K = the share `fraction` of M's rows (columns, where there are fewer) with the largest sums of magnitudes
        M_K = ef_decay M_K, after U has been taken from it
        U = NewtonSchulz(M_K), 0 in the other rows
        P = P - lr s U - lr weight_decay P,  s = sqrt(r / c)

    and with `algo="nordion2"` (NorDion2, also called Dion3), always by rows, D in place of U, W a number for each row:

        W = beta2 W + (1 - beta2) mean(U^2) of the row, of the rows in K
        D = |U| Q / |Q|,  Q = U / (sqrt(W) + 1e-8)

    Newton-Schulz is that of a smaller matrix, which is what this saves. Everything else takes AdamW's step
    with lr f, f = `fallback_lr_scale`, see `Muon`, which also says what is a hidden matrix; one that makes queries,
    keys and values at once has a choice K for each of the three.

    State: `momentum` (M), `variance_neuron` (W); for everything else `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Ahn et al., Dion2, arXiv 2512.16928; microsoft/dion, `Dion2` and `NorDion2`, with `selection_scope="global"`:
        by default the authors choose rows of each shard by itself. They round to bfloat16 before Newton-Schulz, whose
        fifth iteration is another one of the Polar Express.
    """

    hidden_matrices = True
    names = (
        Name("dion2"),
        Name(
            "nordion2",
            "Dion2 with rows of equal size, by their second moments",
            "https://github.com/microsoft/dion",
            {"algo": "nordion2"},
            aliases=("dion3",),
        ),
    )
    lr: float = hyper(0.01, "learning rate")
    fraction: float = hyper(0.25, "share of the rows or columns that take a step", above=0.0, most=1.0)
    ef_decay: float = hyper(0.95, "what is kept of the rows that took a step", most=1.0)
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    algo: str = hyper("dion2", "which rule takes the matrices", choices=("dion2", "nordion2"))
    beta2: float = hyper(0.95, "decay rate of W", below=1.0)
    eps: float = hyper(1e-8, "least norm that Newton-Schulz divides by; AdamW's eps")
    adjust_lr_fn: str = hyper("rms_to_rms", "the factor s", choices=LR_SCALES)
    ns_coefficients: str | Triple | Sequence[Triple] = newton_schulz.coefficients_option("polar_express_safer")
    ns_steps: int = newton_schulz.STEPS
    safety_factor: float = hyper(1.02, "multiplies the norm before Newton-Schulz", above=0.0)
    ns_dtype: torch.dtype | str | None = newton_schulz.DTYPE

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        normed = group["algo"] == "nordion2"
        return dion2(form, newton_schulz_of(group), group["adjust_lr_fn"], group["fraction"], normed)
