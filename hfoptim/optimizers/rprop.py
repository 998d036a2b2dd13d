"""Resilient backpropagation."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, State, checks, hyper, rule, zeros
from hfoptim.optimizers.shared.decay_options import OWN_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    # The step sizes begin at 0, and the first step adds the learning rate: a weight, not a branch.
    shrink, grow = group["etas"]
    least, most = group["step_sizes"]
    first = float(group["lr"]) if t == 1 else 0.0
    return {"shrink": shrink, "grow": grow, "least": least, "most": most, "first": first, "lr": 1.0}


# A step size is exact: it is multiplied at every step.
@rule(ELEMENT, per_step=_per_step, prev=zeros, step_size=State(zeros.init))
def rprop(grad: Any, param: Any, prev: Any, step_size: Any, h: Any) -> tuple[Any, Any, Any]:
    """The sign of the gradient, times a size that grows while the sign stays and shrinks when it turns."""
    agrees = grad * prev
    size = step_size + h.first
    size = torch.where(agrees > 0, size * h.grow, torch.where(agrees < 0, size * h.shrink, size))
    size = size.clamp(min=h.least, max=h.most)
    grad = torch.where(agrees < 0, 0.0, grad)
    return grad.sign() * size, grad, size


def _etas(name: str, value: Any) -> tuple[float, float]:
    shrink, grow = _pair(name, value)
    if not 0.0 < shrink < 1.0 < grow:
        raise ValueError(f"{name}={value!r}, expected a number between 0 and 1 and one above 1")
    return shrink, grow


def _step_sizes(name: str, value: Any) -> tuple[float, float]:
    least, most = _pair(name, value)
    if least > most:
        raise ValueError(f"{name}={value!r}, expected the smaller number first")
    return least, most


def _pair(name: str, value: Any) -> tuple[float, float]:
    found = checks.entries(value)
    if found is None or len(found) != 2:
        raise ValueError(f"{name}={value!r}, expected two numbers")
    first, second = (checks.number(f"{name}[{i}]", each) for i, each in enumerate(found))
    return first, second


class Rprop(RuleOptimizer):
    """The sign of the gradient with a step size for every entry, for whole batches, with torch.optim.Rprop's numbers.

    With g the gradient, g' the one before, p the parameter, s = lr at first, (shrink, grow) = etas:

        s = grow s     where g g' > 0
        s = shrink s   where g g' < 0, and there g = 0
        s = min(max(s, step_sizes[0]), step_sizes[1])
        p = p - s sign(g) - lr weight_decay p

    lr is the size of the first step alone: what a schedule makes of it later changes nothing but the decay. Noisy
    gradients of small batches turn signs at random and shrink all steps. State: `prev` (g), `step_size` (s). A
    state_dict of torch.optim.Rprop loads. optax' rprop takes every step one step late.

    Source:
        Riedmiller and Braun, https://doi.org/10.1109/ICNN.1993.298623; torch.optim.Rprop.
    """

    rule = rprop
    names = (Name("rprop"),)
    lr: float = hyper(1e-2, "size of the first step of every entry")
    etas: tuple[float, float] = hyper(
        (0.5, 1.2), "factors of a step size: where a sign turns, where it stays", check=_etas
    )
    step_sizes: tuple[float, float] = hyper((1e-6, 50.0), "least and largest step size", check=_step_sizes)
    _: KW_ONLY
    weight_decay: float = OWN_DECAY
