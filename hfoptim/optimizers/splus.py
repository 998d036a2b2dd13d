"""SPlus: signs of the momentum in Shampoo's eigenbases, which are made anew every hundred steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    MATRIX,
    Decay,
    Group,
    Name,
    Rule,
    RunState,
    Scalars,
    State,
    ema,
    hyper,
    local,
    rule,
    zeros,
)
from hfoptim.optimizers.shared.averaging import TwoModes
from hfoptim.optimizers.shared.kronecker import Folding, add_gram, along, eigenvectors


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    return {
        "alpha1": 1.0 - beta1,
        "keep": beta2,
        "alpha2": 1.0 - beta2,
        "alpha_ema": 1.0 - group["ema_rate"],
        "refresh": float(t == 1 or t % group["inverse_steps"] == 0),
        "eps": group["eps"],
        "lr": float(group["lr"]),
        "constant": float(group["lr"]) * group["nonstandard_constant"],
    }


@rule(ELEMENT, per_step=_per_step, returns_step_size=True, momentum=zeros, ema=zeros)
def signed_momentum(grad: Any, param: Any, momentum: Any, average: Any, h: Any) -> tuple[Any, ...]:
    """The signs of the momentum, for what is no matrix; and the average of what they make of the parameter."""
    momentum = ema(momentum, grad, h.alpha1)
    update = momentum.sign() * h.constant
    return update, h.constant, momentum, ema(average, param - update, h.alpha_ema)


def _basis(side: int) -> State:
    def init(param: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.eye(param.shape[side], dtype=dtype, device=param.device)

    return State(init)


@cache
def splus(factored: tuple[bool, bool], standard: bool) -> Rule:
    """The rule for matrices.

    Args:
        factored: which sides have a basis.
        standard: whether the step size goes by the sides.
    """
    folding, sides = Folding(2), [side for side, has in enumerate(factored) if has]

    def fn(grad: Tensor, param: Tensor, momentum: Tensor, average: Tensor, *args: Any) -> tuple[Any, ...]:
        *kept, h = args
        factors, bases = kept[: len(sides)], dict(zip(sides, kept[len(sides) :], strict=True))
        momentum = ema(momentum, grad, h.alpha1)
        signs = along(folding.fold(momentum), [bases.get(side) for side in (0, 1)]).sign()
        update = along(signs, [bases[side].mT if side in bases else None for side in (0, 1)])
        update, seen = folding.unfold(update, param), folding.fold(grad)
        factors = [add_gram(each, seen, side, 2, h.keep, h.alpha2) for each, side in zip(factors, sides, strict=True)]
        new: list[Any] = [None] * len(sides)
        if h.refresh:
            ones = (torch.eye(each.shape[-1], dtype=each.dtype, device=each.device) for each in factors)
            new = [eigenvectors(each + one * h.eps) for each, one in zip(factors, ones, strict=True)]
        size = h.lr * 2.0 / (param.shape[-2] + param.shape[-1]) if standard else h.constant
        update = update * size
        return update, size, momentum, ema(average, param - update, h.alpha_ema), *factors, *new

    fn.__name__ = "splus"
    state = {"momentum": zeros, "ema": zeros}
    state |= {f"sides_{side}": folding.square(side) for side in sides}
    state |= {f"q_sides_{side}": _basis(side) for side in sides}
    return Rule(fn, MATRIX, state, _per_step, returns_step_size=True)


def _stays(state: Mapping[str, Any], totals: Mapping[str, Tensor], group: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


class SPlus(TwoModes):
    """Signs of the momentum in the eigenbases of Shampoo's preconditioner, and an average of the weights.

    With G the gradient of a matrix P of r rows and c columns, t the step:

        M = beta1 M + (1 - beta1) G
        U = QL sign(QL^T M QR) QR^T
        L = beta2 L + (1 - beta2) G G^T,  R = beta2 R + (1 - beta2) G^T G
        at the first step, and every inverse_steps steps:  QL, QR = eigenvectors of L + eps I, R + eps I
        P = P - a U,  a = 2 lr / (r + c)
        E = ema_rate E + (1 - ema_rate) P
        P = P - a weight_decay P

    QL and QR begin as unit matrices. A side of `max_dim` entries or more has none; a matrix with a longer side than
    that, vectors and kernels of convolutions have a = lr nonstandard_constant, and the latter two U = sign(M).

    The weights to evaluate with are E / (1 - ema_rate^t): the parameter holds them from `eval()` to `train()`. Call
    `eval()` before evaluating and before saving the model, and `train()` before training goes on; transformers' Trainer
    does so around evaluations, and for optimizers chosen by hfoptim's names before it saves, too. The switch is exact:
    P is kept aside, also in a state_dict. A new optimizer is in training mode.

    lr is about 100 times that of AdamW. State: `momentum` (M), `ema` (E), `sides_0` and `sides_1` (L, R), `q_sides_0`
    and `q_sides_1` (QL, QR), in evaluation mode `y` (P); in each group `train_mode`.

    Follows the author, whose betas are b1 and b2, and whose inverse_steps is inverse_every. pytorch_optimizer 4.1
    counts the steps of a group.

    Raises:
        RuntimeError: from `step()` in evaluation mode.
        TypeError: a complex matrix.

    Source:
        Frans et al., A Stable Whitening Optimizer for Efficient Neural Network Training, arXiv 2506.07254;
        kvfrans/splus.
    """

    decay = Decay.DECOUPLED_AFTER
    run_state = RunState({"train_mode": True}, _stays)
    names = (Name("splus"),)
    lr: float = hyper(0.1, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of M, and of L and R")
    weight_decay: float = hyper(0.01, "decoupled weight decay, per step and unit of a")
    ema_rate: float = hyper(0.999, "decay rate of E", below=1.0)
    inverse_steps: int = hyper(100, "steps from one basis to the next", low=1)
    nonstandard_constant: float = hyper(0.001, "factor of lr for what is no matrix, or too large a one")
    max_dim: int = hyper(10000, "side from which on there is no basis", low=1)
    eps: float = hyper(1e-30, "added to the diagonals of L and R")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if param.ndim != 2:
            return signed_momentum
        rows, columns = param.shape
        most = group["max_dim"]
        return splus((rows < most, columns < most), max(rows, columns) <= most)

    def evaluated(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        average: Tensor = local(state["ema"])
        share: float = 1.0 - group["ema_rate"] ** float(state["step"])
        return average / share
