"""RACS: the gradient divided by one scale for each row and one for each column."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, Scalars, ema, hyper, zeros_over
from hfoptim.optimizers.shared.low_rank import last_norm, limit
from hfoptim.optimizers.shared.matrices import Form, WithFallback

# Squares of rows and columns of zeros, which stay zero.
_TINY = 1e-30


def _scales(squares: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Of rows and columns, whose products are next to the squares: their leading singular vectors, by iteration."""
    rows, columns = torch.ones_like(squares[..., :1]), squares[..., :1, :]
    for _ in range(iterations):
        columns = rows.mT @ squares / rows.square().sum(-2, keepdim=True).clamp(min=_TINY)
        rows = squares @ columns.mT / columns.square().sum(-1, keepdim=True).clamp(min=_TINY)
    return rows, columns


def _scalars(t: int, group: Group) -> Scalars:
    return {"new": 1.0 - group["beta"], "growth": group["gamma"], "lr": float(group["lr"]) * group["alpha"]} | {
        "decay": float(group["lr"]) * group["weight_decay"]
    }


@cache
def racs(form: Form, iterations: int) -> Rule:
    """The rule for matrices of one form."""

    def fn(grad: Tensor, param: Tensor, of_columns: Tensor, of_rows: Tensor, last: Tensor, h: Any) -> tuple[Any, ...]:
        squares = grad * grad
        rows, columns = _scales(squares, iterations)
        of_columns, of_rows = ema(of_columns, columns, h.new), ema(of_rows, rows, h.new)
        by_rows, by_columns = of_rows.clamp(min=_TINY).reciprocal(), of_columns.clamp(min=_TINY).reciprocal()
        # The norm of the update by a product of vectors with the squares, before there is an update.
        norm = (by_rows.mT @ squares @ by_columns.mT).sqrt()
        factor, norm = limit(norm, last, h.growth)
        # Where the squares were: memory that is touched for the first time costs a CPU more than what is done with it.
        update = torch.mul(grad, by_rows.sqrt() * factor, out=squares).mul_(by_columns.sqrt())
        return update, of_columns, of_rows, norm

    fn.__name__ = "racs"
    state = {"s": zeros_over(-2), "q": zeros_over(-1), "theta": last_norm}
    return Rule(fn, MATRIX, state, _scalars, shape=form.shape)


class RACS(WithFallback):
    """Gradients of matrices divided by one scale for each row and one for each column, with the memory of SGD.

    With G the gradient, P the parameter, X = G * G entry by entry, q = 1 at first, `iterations` times:

        s = X^T q / |q|^2
        q = X s / |s|^2

    and then, with averages S, Q that begin at 0 and the norm n of the last update:

        S = beta S + (1 - beta) s
        Q = beta Q + (1 - beta) q
        U = Q^(-1/2) G S^(-1/2)                         (rows by Q, columns by S)
        U = U / max(1, |U| / (gamma n));  n = |U|       (not at first)
        P = P - lr alpha U - lr weight_decay P

    AdamW takes everything else, with lr f, f = `fallback_lr_scale`; `Muon` says what is a hidden matrix.

    State: `s` (S), `q` (Q), `theta` (n); for everything else `exp_avg`, `exp_avg_sq`.

    Follows the paper, whose experiments have lr 0.02, and alpha 0.02 for the largest models. pytorch_optimizer 4.1
    differs: it takes the means of rows and columns without iterating, so that its update has the size of 1 over that of
    the gradient, begins Q at 1, and steps vectors alike.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Gong, Scetbon, Ma and Meeds, Towards Efficient Optimizer Design for LLM via Structured Fisher Approximation with
        a Low-Rank Extension, arXiv 2502.07752, algorithm 1 and equation 16. Defaults of pytorch_optimizer.
    """

    hidden_matrices = True
    names = (Name("racs"),)
    lr: float = hyper(1e-3, "learning rate")
    beta: float = hyper(0.9, "decay rate of S and Q", below=1.0)
    alpha: float = hyper(0.05, "factor of lr for matrices")
    gamma: float = hyper(1.01, "how many times as long as the last one an update may be", above=0.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    iterations: int = hyper(5, "iterations for s and q", low=1, most=99)
    eps: float = hyper(1e-8, "AdamW's eps")

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return racs(form, group["iterations"])
