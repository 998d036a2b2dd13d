"""FTRL-Proximal: follow the regularised leader."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, RuleOptimizer, Scalars, add_scaled, hyper, zeros
from hfoptim.optimizers.shared.decay_options import OWN_DECAY
from hfoptim.optimizers.shared.filled import filled


def _per_step(t: int, group: Group) -> Scalars:
    # Everything is divided by lr. At 0 nothing is taken in, and nothing moves.
    lr = float(group["lr"])
    return {
        "weight": 1.0 if lr else 0.0,
        "inverse_lr": 1.0 / lr if lr else 1.0,
        "power": -group["lr_power"],
        "beta": group["beta"],
        "l1": group["lambda_1"],
        "l2": group["lambda_2"],
        "shrinkage": group["l2_shrinkage"],
        "lr": 1.0 if lr else 0.0,
    }


@cache
def ftrl(initial: float, root: bool) -> Rule:
    """The rule whose sum of squares begins at `initial`; `root` where the power is 1/2, as a root is faster."""

    def fn(grad: Any, param: Any, z: Any, n: Any, h: Any) -> tuple[Any, Any, Any]:
        total = add_scaled(n, grad * grad, h.weight)
        scale, before = (total.sqrt(), n.sqrt()) if root else (total**h.power, n**h.power)
        z = add_scaled(z, add_scaled(grad, param, h.shrinkage), h.weight)
        z = add_scaled(z, (scale - before) * param, -h.inverse_lr)
        # Those within l1 become 0; the others are as far from it as before.
        beyond = (z.abs() - h.l1).clamp(min=0.0) * z.sign()
        strength = add_scaled(scale * h.inverse_lr, torch.ones_like(scale), h.l2 + h.beta * h.inverse_lr)
        new = torch.where(beyond == 0, 0.0, -beyond / strength)
        return param - new, z, total

    fn.__name__ = "ftrl"
    return Rule(fn, ELEMENT, {"z": zeros, "n": filled(initial)}, _per_step, exact_weights=True)


class FTRL(RuleOptimizer):
    """Weights that follow from all gradients so far, exactly 0 where the evidence is below lambda_1: sparse models.

    With g the gradient, p the parameter, z = 0 and n = initial_accumulator_value at first:

        z = z + g + l2_shrinkage p - ((n + g^2)^-lr_power - n^-lr_power) / lr p
        n = n + g^2
        w = 0                                           where |z| <= lambda_1
        w = (lambda_1 sign(z) - z) / ((beta + n^-lr_power) / lr + lambda_2)     elsewhere
        p = p - (p - w) - lr weight_decay p

    Weights are made anew from z at every step: what they were before the first one counts by its gradient only, and an
    entry that never had one is 0. State: `z`, `n`.

    Follows pytorch_optimizer and, beyond its lr_power of -0.5, the paper and keras.optimizers.Ftrl:
    pytorch_optimizer 4.1 takes the root of n in the last line whatever lr_power is. keras' strengths of l2 and of its
    shrinkage are half of lambda_2 and of l2_shrinkage, and its accumulator begins at 0.1.

    Source:
        McMahan et al., Ad click prediction: a view from the trenches,
        https://research.google.com/pubs/archive/41159.pdf; pytorch_optimizer 4.1, `FTRL`; keras 3, `Ftrl`.
    """

    names = (Name("ftrl"),)
    lr: float = hyper(1e-3, "learning rate")
    lr_power: float = hyper(-0.5, "exponent of n in the step size", low=-math.inf, most=0.0)
    beta: float = hyper(0.0, "added to the power of n")
    lambda_1: float = hyper(0.0, "L1 penalty")
    lambda_2: float = hyper(0.0, "L2 penalty")
    initial_accumulator_value: float = hyper(0.0, "first value of n")
    _: KW_ONLY
    l2_shrinkage: float = hyper(0.0, "L2 penalty that enters z, but not n, with the gradient")
    weight_decay: float = OWN_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return ftrl(group["initial_accumulator_value"], group["lr_power"] == -0.5)
