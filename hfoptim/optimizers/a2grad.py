"""A2Grad: adaptive accelerated gradient descent, in three forms."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    State,
    clone,
    ema,
    hyper,
    nonnegative,
    zeros,
)
from hfoptim.optimizers.shared.distance import LR_FACTOR


def _per_step(t: int, group: Group) -> Scalars:
    """k = t - 1 counts as the paper does, from 0."""
    now, next_ = 2.0 / (t + 1), 2.0 / (t + 2)
    scalars = {
        "share": 1.0 / t,
        "gamma": 2.0 * group["lips"] / t,
        "beta": group["beta"],
        "size": float(group["lr"]),
        "pull": next_,
        "reach": next_ + (1.0 - next_) * now,
        "lr": 1.0,
    }
    if group["variant"] == "inc":
        scalars["faded"] = ((t - 1) / t) ** 2
    if group["variant"] == "exp":
        scalars |= {"alpha": 1.0 - group["rho"], "beta": group["beta"] * math.sqrt(t)}
    return scalars


# Sums over the whole run, kept exact.
_MEAN, _SUM = State(zeros.init), State(nonnegative.init, signed=False)


@cache
def a2grad(variant: str) -> Rule:
    """The rule for one way to weigh the deviations of the gradients so far."""

    def fn(grad: Any, param: Any, avg_grad: Any, x_k: Any, v_k: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        avg_grad = ema(avg_grad, grad, h.share)
        apart = grad - avg_grad
        kept = []
        if variant == "exp":
            kept = [ema(state[0], apart * apart, h.alpha)]
            v_k = torch.maximum(v_k, kept[0])
        else:
            v_k = (v_k * h.faded if variant == "inc" else v_k) + apart * apart
        step = grad * h.size / (v_k.sqrt() * h.beta + h.gamma)
        return ((param - x_k) * h.pull + step * h.reach, avg_grad, x_k - step, v_k, *kept)

    fn.__name__ = f"a2grad_{variant}"
    state = {"avg_grad": _MEAN, "x_k": clone, "v_k": _SUM}
    states = {**state, "v_kk": nonnegative} if variant == "exp" else state
    return Rule(fn, ELEMENT, states, _per_step, exact_weights=True)


class A2Grad(RuleOptimizer):
    """Nesterov's accelerated gradient descent with step sizes from the variance of the gradients: no learning rate.

    With g the gradient, p the parameter, x = p at the start, k = 0, 1, ... the step, a_k = 2 / (k + 2):

        g = g + weight_decay p
        d = (g - mean of all g so far)^2
        v = v + d                                                       (variant "uni")
        v = (k / (k + 1))^2 v + d                                       ("inc")
        w = rho w + (1 - rho) d;  v = max(v, w)                         ("exp")
        c = lr / (2 lips / (k + 1) + beta sqrt(v))                      ("exp": sqrt((k + 1) v))
        x = x - c g
        p = p - a_(k + 1) (p - x) - (1 - a_(k + 1)) a_k c g

    lr is a factor for schedules; the paper has none, and no weight decay. State: `avg_grad` (the mean), `x_k` (x),
    `v_k` (v), with "exp" `v_kk` (w).

    Follows the paper, whose d, v and c are of each entry. severilov/A2Grad_optimizer, which is not its authors', and
    torch_optimizer have the sum of d over a tensor: steps are shorter, the more entries there are. pytorch_optimizer
    does so too, counts k from 1, and has sqrt((k + 1) v) in "inc".

    Source:
        Deng, Cheng and Lan, Optimal Adaptive and Accelerated Stochastic Gradient Descent, arXiv 1810.00553,
        algorithms 4 to 7.
    """

    decay = Decay.COUPLED
    lr_is_factor = True
    names = (
        Name("a2grad", aliases=("a2grad_uni",)),
        Name("a2grad_inc", "A2Grad that forgets old variances slowly", options={"variant": "inc"}),
        Name("a2grad_exp", "A2Grad that forgets old variances fast", options={"variant": "exp"}),
    )
    lr: float = LR_FACTOR
    beta: float = hyper(10.0, "weight of the variance")
    lips: float = hyper(10.0, "Lipschitz constant of the gradient", above=0.0, excluded="would divide by 0 at first")
    rho: float = hyper(0.5, 'decay rate of w in variant "exp"', most=1.0)
    variant: str = hyper("uni", "how variances are weighed", choices=("uni", "inc", "exp"))
    weight_decay: float = hyper(0.0, "L2 penalty")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return a2grad(group["variant"])
