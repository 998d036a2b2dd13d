"""SM3: Adagrad whose sum is bounded by one number per row, column, and so on."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache, reduce
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Group, Name, Rule, RuleOptimizer, Scalars, State, ema, hyper, zeros
from hfoptim.engine.rule import add_scaled


def _per_step(t: int, group: Group) -> Scalars:
    beta = group["beta"]
    return {"beta": beta or 1.0, "new": 1.0 - beta, "eps": group["eps"], "alpha1": 1.0 - group["momentum"]}


def _along(dim: int) -> State:
    """Zeros, as many as the parameter has in dimension `dim`; the other dimensions have size 1."""

    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        shape = [size if i == dim else 1 for i, size in enumerate(param.shape)]
        return torch.zeros(shape, dtype=dtype, device=param.device)

    return State(init, signed=False)


@cache
def sm3(rank: int, forgets: bool, momentum: bool) -> Rule:
    """The rule for tensors of so many dimensions; whether the bounds are averages, and steps are."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        bounds = state[: max(rank, 1)]
        total = add_scaled(reduce(torch.minimum, bounds) * h.beta, grad * grad, h.new)
        update = grad * (total + h.eps).rsqrt()
        new = []
        for dim, before in enumerate(bounds):
            largest = total
            for other in set(range(rank)) - {dim}:
                largest = largest.amax(other, keepdim=True)
            new.append(torch.maximum(before, largest) if forgets else largest)
        if not momentum:
            return update, *new
        update = ema(state[-1], update, h.alpha1)
        return update, *new, update

    fn.__name__ = "sm3"
    bounds = {f"accumulator_{dim}": _along(dim) for dim in range(max(rank, 1))}
    return Rule(fn, TENSOR, {**bounds, "momentum_buffer": zeros} if momentum else bounds, _per_step)


class SM3(RuleOptimizer):
    """Adagrad in sublinear memory: of its sums, one bound per row and one per column.

    With g the gradient, p the parameter, and a_i for each dimension i a vector of bounds:

        v = min over i of a_i + g^2                     (with beta: beta min + (1 - beta) g^2)
        a_i = max of v over all dimensions but i        (with beta: not less than before)
        m = momentum m + (1 - momentum) g / sqrt(v + eps)
        p = p - lr m - lr weight_decay p

    What has one dimension or none is Adagrad itself. State: `accumulator_0`, `accumulator_1`, ... (a_i, of as many
    dimensions as the parameter); with momentum `momentum_buffer` (m).

    Follows Enealor/PyTorch-SM3, which added beta, and pytorch_optimizer 4.1, but for its scalars, whose bound falls
    with beta. The authors leave out entries whose v is 0 in place of an eps. optax's is 1e-8, and its momentum 0.9.

    Raises:
        TypeError: a complex parameter.

    Source:
        Anil et al., Memory-Efficient Adaptive Optimization, arXiv 1901.11150; google-research/google-research, `sm3`.
    """

    names = (Name("sm3"),)
    lr: float = hyper(1e-1, "learning rate")
    momentum: float = hyper(0.0, "decay rate of m", below=1.0)
    beta: float = hyper(0.0, "decay rate of the bounds; 0 sums, as Adagrad", below=1.0)
    eps: float = hyper(1e-30, "added to v")
    _: KW_ONLY
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return sm3(param.ndim, group["beta"] > 0.0, group["momentum"] != 0.0)
