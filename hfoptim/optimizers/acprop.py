"""ACProp."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, Scalars, State, bias_correction, ema, hyper, nonnegative, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import moment_rates, with_largest
from hfoptim.optimizers.shared.rectification import rectified


def _per_step(t: int, group: Group) -> Scalars:
    """The update as (of_grad g + of_average m) / (adapted sqrt(s) + eps), s corrected for the steps before this one."""
    beta1, beta2 = group["betas"]
    lr, c1 = float(group["lr"]), bias_correction(beta1, t)
    plain = {"adapted": 0.0, "eps": 1.0, "lr": lr / c1}
    if t == 1:
        found = plain
    elif group["rectify"]:
        found = rectified(t, group)
    else:
        root = math.sqrt(bias_correction(beta2, t - 1))
        found = {"adapted": 1.0, "eps": group["eps"] * root, "lr": lr / c1 * root}
    by_average = group["momentum_update"] or not found["adapted"]
    weights = {"of_grad": 0.0 if by_average else c1, "of_average": float(by_average)}
    eps_of_s = group["eps"] if t > 1 or group["amsgrad"] else 0.0
    return {**moment_rates(t, group), **fixed_decay(group), **found, **weights, "eps_of_s": eps_of_s}


# A new gradient is divided by what was known before it: an entry must not be rounded to nothing.
_VARIANCE = State(nonnegative.init, signed=False)


@cache
def acprop(amsgrad: bool, rectify: bool) -> Rule:
    """The rule, with or without AMSGrad and rectification."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_var: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        exp_avg = ema(exp_avg, grad, h.alpha1)
        before = exp_avg_var + h.eps_of_s
        largest, kept = with_largest(before, state)
        divisor = (before if rectify else largest).sqrt() * h.adapted + h.eps
        update = (exp_avg * h.of_average + grad * h.of_grad) / divisor
        surprise = grad - exp_avg
        return update, exp_avg, ema(before, surprise * surprise, h.alpha2), *kept

    fn.__name__ = "acprop"
    state = {"exp_avg": zeros, "exp_avg_var": _VARIANCE}
    return Rule(fn, ELEMENT, {**state, "max_exp_avg_var": _VARIANCE} if amsgrad else state, _per_step)


class ACProp(Decoupling):
    """AdaBelief that divides the gradient by what was known of it before: it is no part of its own divisor.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        s = s + eps                                             (not at the first step, but with amsgrad)
        u = g / (sqrt(s / (1 - beta2^(t-1))) + eps),  at the first step g
        s = beta2 s + (1 - beta2) (g - m)^2
        p = p - lr u - lr weight_decay p                        (fixed_decay: - weight_decay p)

    with g = g + weight_decay p before it in place of the decay without `weight_decouple`, m / (1 - beta1^t) in place of
    g in u with `momentum_update`, and the largest s so far in u with `amsgrad`. With `rectify` and r RAdam's
    rectification, from where there is one:

        u = r sqrt(1 - beta2^t) g / (sqrt(s) + eps),  before that m / (1 - beta1^t), or nothing

    The class has `rectify` on, as the author's; the name "acprop" has it off, as optax. State: `exp_avg` (m),
    `exp_avg_var` (s), `max_exp_avg_var` with amsgrad, both of which are not kept in fewer bits.

    Follows the author's code. optax takes g - m with the m before this step, which is 1 / beta1 of it, and eps into s
    after it. With both options `rectify` divides by s, not by the largest one.

    Source:
        Zhuang et al., Momentum Centering and Asynchronous Update for Adaptive Gradient Methods, arXiv 2110.05454;
        juntang-zhuang/ACProp-Optimizer.
    """

    names = (Name("acprop", options={"rectify": False}),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and s")
    eps: float = hyper(1e-16, "added to s at every step, and to its root")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    amsgrad: bool = hyper(False, "divide by the largest s so far")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    rectify: bool = hyper(True, "RAdam's rectification")
    degenerated_to_sgd: bool = hyper(True, "steps along m where `rectify` has no number yet; False takes none")
    momentum_update: bool = hyper(False, "steps along m")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return acprop(group["amsgrad"], group["rectify"])
