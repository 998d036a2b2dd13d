"""MADGRAD and its form by mirror descent."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, Rule, add_scaled, clone, nonnegative, zeros


def _scaled(x: Any, total: Any, h: Any) -> Any:
    """x over the cube root of a sum of squares; 0 where that is 0, since x is, too."""
    root = total ** (1.0 / 3.0) + h.eps
    return torch.where(root > 0, x / root, 0.0)


def _stable(lr: float, group: Group) -> float:
    return lr + group["eps"] if lr else 0.0


def _per_step(t: int, group: Group) -> Scalars:
    lr, momentum = float(group["lr"]), group["momentum"]
    scalars = {"eps": group["eps"], "weight": _stable(lr, group) * math.sqrt(t), "lr": 1.0 - momentum}
    # The decayed parameter is part of the average with z, which is not decayed.
    return {**scalars, "decay": lr * group["weight_decay"] * (momentum or 1.0)} if group["decoupled_decay"] else scalars


@cache
def madgrad(momentum: bool) -> Rule:
    """The rule; without momentum the start follows from the parameter and is not kept."""

    def fn(grad: Any, param: Any, grad_sum_sq: Any, s: Any, *args: Any) -> tuple[Any, ...]:
        *start, h = args
        total, sum_ = add_scaled(grad_sum_sq, grad * grad, h.weight), add_scaled(s, grad, h.weight)
        gone = _scaled(sum_, total, h)
        if momentum:
            return param - start[0] + gone, total, sum_, None
        return gone - _scaled(s, grad_sum_sq, h), total, sum_

    fn.__name__ = "madgrad"
    state = {"grad_sum_sq": nonnegative, "s": zeros}
    states = {**state, "x0": clone} if momentum else state
    return Rule(fn, ELEMENT, states, _per_step, exact_weights=momentum)


def _mirror_per_step(t: int, group: Group) -> Scalars:
    lr = _stable(float(group["lr"]), group)
    return {
        "eps": group["eps"],
        "faded": math.sqrt((t - 1) / t),
        "size": lr * t ** (1.0 / 3.0),
        "inside": lr * group["weight_decay"] if group["decouple_decay"] else 0.0,
        "lr": 1.0 - group["momentum"],
    }


def _mirror_madgrad(grad: Any, param: Any, grad_sum_sq: Any, z: Any, h: Any) -> tuple[Any, Any, Any]:
    """z takes the adaptive step, and the parameter follows it."""
    grad_sum_sq = grad_sum_sq * h.faded + grad * grad
    z = add_scaled(add_scaled(z, z, -h.inside), _scaled(grad, grad_sum_sq, h), -h.size)
    return param - z, grad_sum_sq, z


class MADGRAD(RuleOptimizer):
    """Dual averaging with a cube root: the sum of all gradients, from where the parameter began.

    With g the gradient, p the parameter, q its first value, t the step:

        w = (lr + eps) sqrt(t)
        s = s + w g;  v = v + w g^2
        z = q - s / (cbrt(v) + eps)
        p = p - (1 - momentum) (p - z)

    with g = g + weight_decay p before it, or under `decoupled_decay` p = p - lr weight_decay p. Wants less weight decay
    than other optimizers, often none, and a learning rate of its own. w is 0 where lr is.

    State: `grad_sum_sq` (v), `s`, with momentum `x0` (q). A state_dict of timm's MADGRAD loads.

    Follows timm: the decoupled decay comes before the average. The author's code and pytorch_optimizer take
    (lr + eps) weight_decay of the old p from the new one. pytorch_optimizer's default lr is 1e-3.

    Source:
        Defazio and Jelassi, arXiv 2101.11075; facebookresearch/madgrad; timm 1.0, `timm.optim.MADGRAD`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled_decay"
    names = (
        Name("madgrad"),
        Name("madgradw", "MADGRAD with decoupled weight decay", options={"decoupled_decay": True}),
    )
    lr: float = hyper(1e-2, "learning rate")
    momentum: float = hyper(0.9, "share of the parameter in its next value", below=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    eps: float = hyper(1e-6, "added to the cube root of v and to lr")
    decoupled_decay: bool = hyper(False, "decoupled weight decay")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return madgrad(group["momentum"] != 0)


class MirrorMADGRAD(RuleOptimizer):
    """MADGRAD by mirror descent, which forgets where the parameter began: for long runs.

    With g the gradient, p the parameter, z = p at the start, t the step, a = lr + eps:

        v = sqrt((t - 1) / t) v + g^2
        z = z - a cbrt(t) g / (cbrt(v) + eps)
        p = p - (1 - momentum) (p - z)

    with g = g + weight_decay p before it, or under `decouple_decay` z = z - a weight_decay z. State: `grad_sum_sq` (v),
    `z`. a is 0 where lr is. The author counts steps once for the whole optimizer, this one per parameter.

    Source:
        Defazio and Jelassi, arXiv 2101.11075; facebookresearch/madgrad, `MirrorMADGRAD`.
    """

    rule = Rule(
        _mirror_madgrad, ELEMENT, {"grad_sum_sq": nonnegative, "z": clone}, _mirror_per_step, exact_weights=True
    )
    names = (Name("mirror_madgrad"),)
    lr: float = hyper(1e-2, "learning rate")
    momentum: float = hyper(0.9, "share of the parameter in its next value", below=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    eps: float = hyper(0.0, "added to the cube root of v and to lr")
    decouple_decay: bool = hyper(False, "decoupled weight decay, of z")

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.NONE if group["decouple_decay"] else Decay.COUPLED
