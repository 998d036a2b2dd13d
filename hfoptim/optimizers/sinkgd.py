"""SinkGD: gradients whose rows and columns are brought to one size in turn; no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, MatrixFunction, Name, Rule, hyper
from hfoptim.optimizers.shared.matrices import Form, MatrixOptimizer


def _balanced(matrix: Tensor, iterations: int) -> Tensor:
    least = torch.finfo(matrix.dtype).tiny  # rows and columns of zeros stay
    for _ in range(iterations):
        for dim in (-1, -2):
            matrix = matrix * matrix.square().mean(dim=dim, keepdim=True).clamp(min=least).rsqrt()
    return matrix


@cache
def sinkgd(form: Form, iterations: int) -> Rule:
    """The rule for matrices of one form."""

    @MatrixFunction
    def balanced(stacks: Sequence[Tensor]) -> list[Tensor]:
        return form.all(lambda parts: [_balanced(part, iterations) for part in parts], stacks)

    def fn(grad: Any, param: Any, h: Any) -> tuple[Any]:
        return (balanced(grad),)

    fn.__name__ = "sinkgd"
    return Rule(fn, MATRIX, shape=form.shape)


class SinkGD(MatrixOptimizer):
    """Gradients whose rows and columns are brought to one size in turn, for matrices without any state.

    With G the gradient, P the parameter, X = G at first, `sinkhorn_iterations` times:

        X = X, each row divided by its root mean square
        X = X, each column divided by its root mean square

    and then

        P = P - lr X - lr weight_decay P

    An update has a root mean square of 1, as Adam's has at first, so that lr and weight decay are about those of AdamW,
    which takes everything else, with lr f, f = `fallback_lr_scale`; `Muon` says what is a hidden matrix.
    A matrix that makes queries, keys and values at once is balanced in three parts.

    State: none; for everything else `exp_avg`, `exp_avg_sq`.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Scetbon, Ma, Gong and Meeds, Gradient Multi-Normalization for Stateless and Scalable LLM Training, arXiv
        2502.06742. adv_optm 2.5's SinkSGD_adv differs: it begins with the columns of a matrix that has more rows, and
        divides by no less than a fixed length, so that small gradients make small steps.
    """

    hidden_matrices = True
    names = (Name("sinkgd"),)
    lr: float = hyper(1e-3, "learning rate")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    sinkhorn_iterations: int = hyper(5, "how often rows and columns are divided", low=1, most=99)
    eps: float = hyper(1e-8, "AdamW's eps")

    def matrix_rule(self, form: Form, group: dict[str, Any]) -> Rule:
        return sinkgd(form, group["sinkhorn_iterations"])
