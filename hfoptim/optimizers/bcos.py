"""BCOS."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, nonnegative, zeros
from hfoptim.engine.rule import add_scaled


def _per_step(t: int, group: Group) -> Scalars:
    beta, beta2, conditional = group["beta"], group["beta2"], group["mode"] == "c"
    scalars = {"first": 1.0 if t == 1 else 0.0, "eps": group["eps"]}
    if group["mode"] != "g":
        scalars["alpha"] = 1.0 - beta
    if not conditional:
        scalars["alpha2"] = 1.0 - (beta if beta2 is None else beta2)
    elif group["simple_cond"]:
        past = 1.0 - (1.0 - beta) ** 2 if beta2 is None else beta2
        scalars |= {"past": past, "present": 1.0 - past, "cross": 0.0}
    else:
        new = (1.0 - beta) ** 2
        scalars |= {"past": beta**2 * (3.0 - 2.0 * beta), "present": new, "cross": 2.0 * beta * new}
    return scalars


@cache
def bcos(mode: str, decoupled: bool) -> Rule:
    """The rule for one search direction and estimate, with decoupled weight decay or that in the gradient."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        # Both averages begin at the first gradient, and that has no decay in it.
        begun = [ema(kept, new, h.first) for kept, new in zip(state, first_values(grad), strict=True)]
        if not decoupled:
            grad = add_scaled(grad, param, h.weight_decay)
        direction = grad if mode == "g" else ema(begun[0], grad, h.alpha)
        if mode == "c":
            before = begun[0]
            second = before * before * h.past + grad * grad * h.present + before * grad * h.cross
        else:
            second = ema(begun[-1], direction * direction, h.alpha2)
        new = {"g": [second], "m": [direction, second], "c": [direction]}[mode]
        return (direction / (second.sqrt() + h.eps), *new)

    def first_values(grad: Any) -> list[Any]:
        return {"g": [grad * grad], "m": [grad, grad * grad], "c": [grad]}[mode]

    fn.__name__ = f"bcos_{mode}"
    state = {"g": {"v": nonnegative}, "m": {"m": zeros, "v": nonnegative}, "c": {"m": zeros}}[mode]
    return Rule(fn, ELEMENT, state, _per_step)


class BCOS(RuleOptimizer):
    """Adam's kind with one average: step sizes near the best of each coordinate, from momentum and gradient alone.

    With g the gradient, p the parameter, m' the momentum from before the step, at first the first gradient:

        m = beta m' + (1 - beta) g
        v = (3 beta^2 - 2 beta^3) m'^2 + (1 - beta)^2 g^2 + 2 beta (1 - beta)^2 m' g
        v = b m'^2 + (1 - b) g^2,  b = beta2 or 1 - (1 - beta)^2           (simple_cond)
        p = p - lr m / (sqrt(v) + eps) - lr weight_decay p

    or without `decouple_wd`, g = g + weight_decay p before it. That is mode "c", the conditional estimate. In mode "m"
    v is an average of m^2 with decay rate beta2 (or beta), in mode "g" one of g^2, and the step takes g for m.

    State: `m` (modes c and m), `v` (m and g). Follows the author. pytorch_optimizer 4.1 differs in mode "c": it takes
    the new m for m'.

    Source:
        Jiang and Xiao, Stochastic Approximation with Block Coordinate Optimal Stepsizes, arXiv 2507.08963;
        facebookresearch/bcos.
    """

    decay = Decay.INSIDE
    decoupled_by = "decouple_wd"
    names = (Name("bcos"),)
    lr: float = hyper(1e-3, "learning rate")
    beta: float = hyper(0.9, "decay rate of m", below=1.0)
    beta2: float | None = hyper(None, "decay rate of v; None is beta, with `simple_cond` 1 - (1 - beta)^2", below=1.0)
    eps: float = hyper(1e-6, "added to the root of v")
    weight_decay: float = hyper(0.1, "weight decay, per step and unit of lr, or L2 penalty")
    mode: str = hyper("c", "estimate of the second moment", choices=("g", "m", "c"))
    decouple_wd: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")
    simple_cond: bool = hyper(False, 'the simpler estimate of mode "c"')

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return bcos(group["mode"], group["decouple_wd"])
