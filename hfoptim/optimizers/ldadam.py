"""LDAdam: AdamW in a subspace that follows the gradient at every step, and what that leaves out goes into the next."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, Scalars, bias_correction, hyper, zeros
from hfoptim.optimizers.shared.low_rank import ONE_SIDED, Projection, of_low
from hfoptim.optimizers.shared.matrices import Form, WithFallback, as_matrix
from hfoptim.optimizers.shared.moments import adam_state, corrected, moments, normed


def _scalars(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    # Those of the step before; at the first step there are no moments that they could be of.
    before1, before2 = (bias_correction(beta, t - 1) if t > 1 else 1.0 for beta in (beta1, beta2))
    return {
        **corrected(t, group),
        "first": float(t == 1),
        "rho": group["rho"],
        "before1": before1,
        "before2": before2,
        "carried": beta1 / (1.0 - beta1),
    }


def _turned(projection: Projection, basis: Tensor, matrix: Tensor) -> Tensor:
    """A basis after one step of power iteration with a matrix."""
    if projection.side == "right":
        matrix, basis = matrix.mT, basis.mT
    turned: Tensor = torch.linalg.qr(matrix @ (matrix.mT @ basis))[0]
    return turned.mT if projection.side == "right" else turned


def _change(projection: Projection, old: Tensor, new: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix that leads from one subspace to another, and what it makes of a projected matrix."""
    if projection.side == "right":
        change = old @ new.mT
        return change, low @ change
    change = new.mT @ old
    return change, change @ low


def _mixed(projection: Projection, change: Tensor, low: Tensor) -> Tensor:
    """Squares of entries in another subspace, as if they did not depend on one another."""
    weights = change * change
    return low @ weights if projection.side == "right" else weights @ low


@cache
def ldadam(projection: Projection, form: Form, by_svd: bool, feeds_back: bool) -> Rule:
    """The rule of matrices.

    Args:
        projection: the subspace.
        form: how a parameter is a matrix.
        by_svd: whether the subspace is that of singular vectors at every step.
        feeds_back: whether what is left out goes into the next gradient.
    """

    def fn(grad: Tensor, param: Tensor, old: Tensor, first: Tensor, second: Tensor, *args: Any) -> tuple[Any, ...]:
        *error, h = args
        grad = grad + error[0] if feeds_back else grad
        followed = grad if h.first else (projection.up(first * (h.rho / h.before1), [old])).add_(grad, alpha=1 - h.rho)
        new = projection.renewed(followed, [old])[0] if h.first or by_svd else _turned(projection, old, followed)
        low = projection.down(grad, [new])
        change, moved = _change(projection, old, new, first)
        if feeds_back:
            rest = projection.up(first * h.carried, [old]).add_(grad)
            error = [rest.sub_(projection.up(moved * h.carried + low, [new]))]
        # What v has beside the square of m is turned; sums that rounding or turning makes negative count by their size.
        spread = _mixed(projection, change, second / h.before2 - (first / h.before1).square())
        second = (h.before2 * (spread + (moved / h.before1).square())).abs()
        first, second = moments(low, moved, second, h)
        (update,) = normed(first, second, h)
        return projection.up(update, [new]), new, first, second, *error

    fn.__name__ = "ldadam"
    low = {name: of_low(state, projection) for name, state in adam_state(amsgrad=False).items()}
    error = {"error": zeros} if feeds_back else {}
    return Rule(fn, MATRIX, {**projection.state(), **low, **error}, _scalars, shape=form.shape)


class LDAdamW(WithFallback):
    """AdamW in a subspace of few rows or columns that follows the gradient at every step, with error feedback.

    With G the gradient of a matrix P of r rows and c columns, r <= c, t the step, A' the basis of the step before and
    E what was left out (r > c: the same of the transposed); * and squares of C, M, V entry by entry:

        G = G + E
        B = rho A' M / (1 - beta1^(t-1)) + (1 - rho) G
        A = an orthonormal basis of B B^T A'              (at first the leading `rank` left singular vectors of G)
        C = A^T A';  N = C M
        E = G - A A^T G + beta1 / (1 - beta1) (A' M - A N)
        V = (1 - beta2^(t-1)) |C^2 (V / (1 - beta2^(t-1)) - M^2 / (1 - beta1^(t-1))^2) + N^2 / (1 - beta1^(t-1))^2|
        M = beta1 N + (1 - beta1) A^T G
        V = beta2 V + (1 - beta2) (A^T G)^2
        P = P - lr weight_decay P - lr A (M / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps))

    AdamW takes everything else, with lr f, f = `fallback_lr_scale`; `Muon` says what is a hidden matrix, and
    `use_muon=True` in a group is the author's `enable_lowrank=True`. With `proj_method="svd"` A is made of the leading
    singular vectors of B at every step.

    State: `ortho_matrix` (A), `exp_avg` (M), `exp_avg_sq` (V), `error` (E).

    The author's code keeps E where the gradient is, and lets the next backward pass add to it: that takes no memory of
    its own, but `zero_grad` and clipping see it. Here it is a state of the parameter's shape; without `error_feedback`
    there is none. Bases are computed in the precision of the step, there in float32. Its `svd_lowrank` is not here.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Robert et al., LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics, arXiv 2410.16103;
        IST-DASLab/LDAdam.
    """

    hidden_matrices = True
    names = (Name("ldadamw", aliases=("ldadam",)),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.908, 0.99), "decay rates of M and V, and AdamW's")
    eps: float = hyper(1e-8, "added to the bias-corrected root of V")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    rank: int = hyper(16, "rows or columns of the subspace", low=1)
    rho: float = hyper(0.908, "share of the old subspace in the new one", below=1.0)
    proj_type: str = ONE_SIDED
    proj_method: str = hyper("power_iteration", "how the subspace is found", choices=("power_iteration", "svd"))
    error_feedback: bool = hyper(True, "what is left out goes into the next gradient")
    _: KW_ONLY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        form = self._form_of(param, group)
        if form is None:
            return super().rule_for(param, group)
        shape = as_matrix(param.shape) if form.flattened else param.shape
        projection = Projection.short(group, shape)  # as the author's of square ones, where GaLore's makes rows short
        return ldadam(projection, form, group["proj_method"] == "svd", group["error_feedback"])
