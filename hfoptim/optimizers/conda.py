"""Conda: Adam's second moment in the singular bases of its momentum."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, MATRIX, Decay, Group, Name, Rule, RuleOptimizer, Scalars, State, ema, hyper, zeros
from hfoptim.optimizers.shared.kronecker import along
from hfoptim.optimizers.shared.low_rank import SIDES, side_of
from hfoptim.optimizers.shared.moments import adam_state, folded, moments_step, normed


def _per_step(t: int, group: Group) -> Scalars:
    refresh = (t - 1) % group["update_proj_gap"] == 0
    return {**folded(t, group), "refresh": float(refresh), "scale": group["scale"]}


@cache
def conda(sides: tuple[bool, bool], rank: int) -> Rule:
    """The rule for matrices.

    Args:
        sides: which have a basis.
        rank: the number of its vectors, which is the shorter side.
    """

    def fn(grad: Tensor, param: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, *args: Any) -> tuple[Any, ...]:
        *bases, h = args
        exp_avg = ema(exp_avg, grad, h.alpha1)
        if h.refresh:
            left, _, right = torch.linalg.svd(exp_avg, full_matrices=False)
            bases = [basis for basis, has in zip((left, right.mT), sides, strict=True) if has]
        given = iter(bases)
        both = [next(given) if has else None for has in sides]
        seen, mean = along(grad, both), along(exp_avg, both)
        exp_avg_sq = ema(exp_avg_sq, seen * seen, h.alpha2)
        update = along(normed(mean, exp_avg_sq, h)[0], [None if basis is None else basis.mT for basis in both])
        return update * h.scale, exp_avg, exp_avg_sq, *(bases if h.refresh else [None] * len(bases))

    def second(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = [rank if has else size for has, size in zip(sides, param.shape, strict=True)]
        return torch.zeros(shape, dtype=dtype, device=param.device)

    def basis(side: int) -> State:
        def init(param: Tensor, dtype: torch.dtype) -> Tensor:
            return torch.zeros(param.shape[side], rank, dtype=dtype, device=param.device)

        return State(init)

    fn.__name__ = "conda"
    state = {"exp_avg": zeros, "exp_avg_sq": State(second, signed=False)}
    state |= {f"basis_{side}": basis(side) for side, has in enumerate(sides) if has}
    return Rule(fn, MATRIX, state, _per_step)


_OTHERS = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), folded)


class Conda(RuleOptimizer):
    """Adam whose second moment is that of the gradient in the singular bases of the momentum.

    With G the gradient of a matrix P, t the step:

        M = beta1 M + (1 - beta1) G
        at the first step, and every update_proj_gap steps after it:  Q = singular vectors of M
        V = beta2 V + (1 - beta2) (Q^T G)^2
        U = scale Q (Q^T M / (sqrt(V) + eps))
        P = P - lr sqrt(1 - beta2^t) / (1 - beta1^t) U
        P = P - lr weight_decay P

    Q has the singular vectors of the shorter side of the matrix (`projection_type` "std", of columns where it is
    square: G Q in place of Q^T G), so that it is orthogonal; of the longer one ("reverse_std"), of the left or of the
    right side always ("left", "right"), or there are two, Q^T G Q' ("full"). Parameters that are no matrices take
    Adam's step.

    State: `exp_avg` (M), `exp_avg_sq` (V), `basis_0`, `basis_1` (Q of the left, of the right side).

    Follows the author, who sees to the bases at steps 1, 1 + update_proj_gap, ...; pytorch_optimizer 4.1 does at 1,
    update_proj_gap, 2 update_proj_gap, ..., and its projection_type "random" raises an error.

    Raises:
        TypeError: a complex matrix.

    Source:
        Wang et al., Conda: Column-Normalized Adam for Training Large Language Models Faster, arXiv 2509.24218;
        jie040109/Conda.
    """

    decay = Decay.DECOUPLED_AFTER
    names = (Name("conda"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of M and V")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    update_proj_gap: int = hyper(2000, "steps from one basis to the next", low=1)
    scale: float = hyper(1.0, "factor of U")
    projection_type: str = hyper("std", "which sides have a basis", choices=SIDES)
    eps: float = hyper(1e-8, "added to the root of V")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if param.ndim != 2:
            return _OTHERS
        side = side_of(group["projection_type"], param.shape)
        return conda((side != "right", side != "left"), min(param.shape))
