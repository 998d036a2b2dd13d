"""AdamWSN: AdamW with one second moment for many entries."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Decay, Name, Rule, RuleOptimizer, ema, hyper, zeros, zeros_over
from hfoptim.engine.checks import integer
from hfoptim.optimizers.adam import adamw
from hfoptim.optimizers.shared.moments import folded, normed


# Passes over memory, in tensors of the parameter's size:
#   the sums of squares: read grad                                              1
#   update: read grad, param, m; write param, m                                 5
@cache
def adamw_sn(subset_size: int) -> Rule:
    """The rule with one second moment for so many entries that follow each other."""

    def shape(shape: torch.Size) -> tuple[int, int]:
        size = subset_of(math.prod(shape), subset_size)
        return math.prod(shape) // size, size

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
        exp_avg = ema(exp_avg, grad, h.alpha1)
        exp_avg_sq = ema(exp_avg_sq, grad.square().sum(-1, keepdim=True), h.alpha2)
        (update,) = normed(exp_avg, exp_avg_sq, h)
        return update, exp_avg, exp_avg_sq

    fn.__name__ = "adamw_sn"
    state = {"exp_avg": zeros, "exp_avg_sq": zeros_over(-1)}
    return Rule(fn, TENSOR, state, folded, shape=shape)


def subset_of(numel: int, subset_size: int) -> int:
    """How many entries share a second moment: the largest divisor of `numel` up to `subset_size`.

    Args:
        numel: of the parameter.
        subset_size: as wanted; -k for the k-th part of the root of `numel`.
    """
    wanted = subset_size if subset_size > 0 else int(math.sqrt(numel) / -subset_size)
    return next((size for size in range(min(wanted, numel), 1, -1) if numel % size == 0), 1)


def _size(name: str, value: Any) -> int:
    found = integer(name, value, -(2**62))
    if found == 0:
        raise ValueError(f"{name}=0 is no size, expected a number of entries, or -k for the k-th part of the root")
    return found


class AdamWSN(RuleOptimizer):
    """AdamW with one second moment per subset of a parameter's entries, of their squared norm.

    With g the gradient, p the parameter, t the step, |g|^2 the sum over the entry's subset, where `sn` is on:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) |g|^2                         (without sn: g^2)
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p = p - lr weight_decay p

    Subsets are entries that follow each other, about as many as the root of the parameter's size, so that v hardly
    takes memory; updates are smaller than AdamW's by about the fourth root of that size, and want a larger lr. It is
    meant for the matrices of linear layers; groups may have `sn` of their own. State: `exp_avg` (m), `exp_avg_sq` (v).

    Follows pytorch_optimizer, where `sn` is off unless a group has it. The authors' own class takes rows or columns of
    matrices, whichever are fewer.

    Raises:
        TypeError: a complex parameter under `sn`.

    Source:
        Nguyen and Nguyen, Subset-Norm and Subspace-Momentum: Faster Memory-Efficient Adaptive Optimization with
        Convergence Guarantees, arXiv 2411.07120; pytorch_optimizer 4.1, `AdamWSN`.
    """

    decay = Decay.DECOUPLED_AFTER
    names = (Name("adamw_sn"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    subset_size: int = hyper(
        -1, "entries with one v, or the largest divisor below; -k for the k-th part of the root of all", check=_size
    )
    eps: float = hyper(1e-8, "added to the root of v")
    sn: bool | None = hyper(None, "one v per subset; None: for parameters of two and more dimensions")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        by_subset = param.ndim >= 2 if group["sn"] is None else group["sn"]
        return adamw_sn(group["subset_size"]) if by_subset else adamw
