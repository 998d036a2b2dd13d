"""Positive-negative momentum: PNM and AdaPNM."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.checks import betas as rates
from hfoptim.engine.checks import entries, number
from hfoptim.engine.rule import ELEMENT, Rule, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import corrected, with_largest
from hfoptim.optimizers.shared.two_momenta import turns, two_momenta


def _per_step(t: int, group: Group) -> Scalars:
    return turns(t, *group["betas"])


@rule(ELEMENT, per_step=_per_step, pos_momentum=zeros, neg_momentum=zeros)
def pnm(grad: Any, param: Any, pos_momentum: Any, neg_momentum: Any, h: Any) -> tuple[Any, Any, Any]:
    """The momentum of every other gradient, less that of those between."""
    return two_momenta(grad, pos_momentum, neg_momentum, h)


def _ada_per_step(t: int, group: Group) -> Scalars:
    beta1, beta2, mix = group["betas"]
    return {**corrected(t, {**group, "betas": (beta1, beta2)}), **turns(t, beta1, mix)}


@cache
def adapnm(amsgrad: bool) -> Rule:
    """The rule, with or without AMSGrad."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, neg_exp_avg: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        step, exp_avg, neg_exp_avg = two_momenta(grad, exp_avg, neg_exp_avg, h)
        exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
        largest, kept = with_largest(exp_avg_sq, state)
        return (step / (largest.sqrt() + h.eps), exp_avg, exp_avg_sq, neg_exp_avg, *kept)

    fn.__name__ = "adapnm"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative, "neg_exp_avg": zeros}
    return Rule(fn, ELEMENT, {**state, "max_exp_avg_sq": nonnegative} if amsgrad else state, _ada_per_step)


def _betas(count: int) -> Callable[[str, Any], tuple[float, ...]]:
    """The check of decay rates followed by a mixing coefficient, which may be 1 and more."""

    def check(name: str, value: Any) -> tuple[float, ...]:
        found = entries(value)
        if found is None or len(found) != count:
            raise ValueError(f"{name}={value!r}, expected {count} numbers, the last of them the mixing coefficient")
        return *rates(name, found[:-1], count - 1), number(f"{name}[{count - 1}]", found[-1])

    return check


class PNM(RuleOptimizer):
    """SGD with two momenta of every other gradient, one less the other: the noise of gradients, amplified.

    With g the gradient, p the parameter, m and n momenta that change places after every step:

        m = beta1^2 m + (1 - beta1^2) g
        p = p - lr ((1 + beta2) m - beta2 n) / sqrt((1 + beta2)^2 + beta2^2) - lr weight_decay p

    or without `decoupled`, g = g + weight_decay p before it and no decay after. State: `pos_momentum`, moved at odd
    steps, `neg_momentum`. Author and pytorch_optimizer agree; the author's lr has no default.

    Source:
        Xie et al., arXiv 2103.17182; zeke-xie/Positive-Negative-Momentum.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled"
    rule = pnm
    names = (Name("pnm"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 1.0), "decay rate of the momenta; how far they differ", check=_betas(2))
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    decoupled: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")


class AdaPNM(RuleOptimizer):
    """Adam with positive-negative momentum.

    With g the gradient, p the parameter, t the step, m and n momenta that change places after every step:

        m = beta1^2 m + (1 - beta1^2) g
        v = beta2 v + (1 - beta2) g^2;  w = max(w, v)           (without amsgrad w = v)
        d = ((1 + beta3) m - beta3 n) / sqrt((1 + beta3)^2 + beta3^2)
        p = p - lr d / (1 - beta1^t) / (sqrt(w / (1 - beta2^t)) + eps) - lr weight_decay p

    where sqrt(w / (1 - beta2^t)) is sqrt(w) / sqrt(1 - beta2^t), or without `decoupled`, g = g + weight_decay p before
    it and no decay after. State: `exp_avg` (moved at odd steps), `neg_exp_avg`, `exp_avg_sq` (v), `max_exp_avg_sq` (w).

    Follows the author. pytorch_optimizer divides by (sqrt(v) + eps) / sqrt(1 - beta2^t).

    Source:
        Xie et al., arXiv 2103.17182; zeke-xie/Positive-Negative-Momentum.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled"
    names = (Name("adapnm"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float, float] = hyper(
        (0.9, 0.999, 1.0), "decay rates of the momenta and of v, and how far the momenta differ", check=_betas(3)
    )
    eps: float = hyper(1e-8, "added to the bias-corrected root of w")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    amsgrad: bool = hyper(True, "divide by the largest v so far")
    decoupled: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adapnm(group["amsgrad"])
