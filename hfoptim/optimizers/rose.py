"""Rose: gradients divided by their range, row by row, without any state."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, TENSOR, Group, Name, Rule, hyper
from hfoptim.optimizers.shared.decoupling import MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.matrices import as_matrix


def _unless_zero(scale: Any) -> Any:
    return torch.where(scale == 0.0, 1.0, scale)


@cache
def rose(dims: int, centralize: bool, stabilize: bool) -> Rule:
    """The rule for numbers (0), vectors (1), matrices (2), or what is seen as one (3)."""

    def number(grad: Any, param: Any, h: Any) -> tuple[Any]:
        return (grad.sign(),)

    def vector(grad: Any, param: Any, h: Any) -> tuple[Any]:
        return (grad / _unless_zero(grad.amax().abs() - grad.amin()),)

    def matrix(grad: Any, param: Any, h: Any) -> tuple[Any]:
        if centralize:
            grad = grad - grad.mean(-1, keepdim=True)
        scale = grad.amax(-1, keepdim=True).abs() - grad.amin(-1, keepdim=True)
        if stabilize:
            mean = scale.mean()
            deviation = (scale - mean).square().mean().sqrt()
            scale = mean + (scale - mean) * (mean / _unless_zero(mean + deviation))
        return (grad / _unless_zero(scale),)

    if dims == 0:
        return Rule(number, ELEMENT)
    return Rule(vector, TENSOR) if dims == 1 else Rule(matrix, TENSOR, shape=as_matrix if dims == 3 else None)


class ROSE(FullyDecoupling):
    """Gradients divided by the range of their rows: no state at all.

    With G the gradient, as a matrix of all that lies behind its first dimension, P the parameter:

        G = G - mean_row(G)                                               (centralize)
        s = |max_row(G)| - min_row(G)
        s = a + (s - a) a / (a + std(s)),  a = mean(s)                    (stabilize)
        P = P - lr G / s - lr weight_decay P                              (s = 1 where it is 0)

    Vectors have one s and are not centralized; of single numbers the sign is taken. With `decouple_lr`, the authors'
    `wd_schedule`, weight decay goes by lr / max_lr.

    The author computes in float64, here that is float32, or float64 for such parameters. His `bf16_sr` is the option
    `stochastic_rounding=True`. pytorch_optimizer 4.1 has an L2 penalty unless told otherwise.

    Raises:
        TypeError: a complex parameter.

    Source:
        https://github.com/MatthewK78/Rose
    """

    names = (Name("rose"),)
    lr: float = hyper(1e-3, "learning rate")
    weight_decay: float = hyper(1e-4, "decoupled weight decay, per step and unit of lr")
    centralize: bool = hyper(True, "take the mean of each row away")
    stabilize: bool = hyper(True, "draw ranges that differ much to their mean")
    decouple_lr: bool = hyper(False, "weight decay by lr / max_lr in place of lr")
    max_lr: float | None = MAX_LR

    def rule_for(self, param: Tensor, group: Group) -> Rule:
        return rose(min(param.ndim, 3), group["centralize"], group["stabilize"])
