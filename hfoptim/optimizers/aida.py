"""Aida."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import TENSOR, Decay, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, nonnegative, zeros
from hfoptim.optimizers.shared.moments import corrected


def _per_step(t: int, group: Group) -> Scalars:
    # eps is in s alone.
    return {**corrected(t, group), "eps": group["eps"], "xi": group["xi"]}


@cache
def aida(projections: int) -> Rule:
    """The rule with so many projections of gradient and momentum on each other."""

    # Passes over memory, in tensors of the parameter's size:
    #   three products: read grad, m; write m                                   3
    #   update: read grad, param, m, s; write param, s                          6
    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_var: Any, h: Any) -> tuple[Any, Any, Any]:
        exp_avg = ema(exp_avg, grad, h.alpha1)
        product, of_grad, of_avg = (grad * exp_avg).sum(), grad.square().sum(), exp_avg.square().sum()
        # Projections of vectors on each other's lines stay on them: two numbers say all.
        a: Any = 1.0
        b: Any = 1.0
        for _ in range(projections):
            both = a * b * product
            a, b = a * both / (a * a * of_grad + h.xi), b * both / (b * b * of_avg + h.xi)
        apart = exp_avg * b - grad * a
        exp_avg_var = ema(exp_avg_var, apart * apart, h.alpha2) + h.eps
        return exp_avg / exp_avg_var.sqrt(), exp_avg, exp_avg_var

    fn.__name__ = "aida"
    return Rule(fn, TENSOR, {"exp_avg": zeros, "exp_avg_var": nonnegative}, _per_step)


class Aida(RuleOptimizer):
    """AdaBelief with gradient and momentum projected on each other first: step sizes vary less within a tensor.

    With g the gradient and m its average, both of a whole tensor, p the parameter, t the step:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        x, y = g, m;  K times:  x, y = <x, y> / (<x, x> + xi) x, <x, y> / (<y, y> + xi) y
        s = beta2 s + (1 - beta2) (y - x)^2 + eps
        p = p - lr m / (1 - beta1^t) / sqrt(s / (1 - beta2^t))

    State: `exp_avg` (m), `exp_avg_var` (s).

    Follows the author. pytorch_optimizer divides by (sqrt(s + 1e-15) + eps) / sqrt(1 - beta2^t).

    Raises:
        TypeError: a complex parameter.

    Source:
        Zhang et al., arXiv 2203.13273; guoqiang-zhang-x/Aida-Optimizer.
    """

    decay = Decay.COUPLED
    names = (Name("aida"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and s")
    eps: float = hyper(1e-8, "added to s at every step", above=0.0, excluded="would divide by 0")
    weight_decay: float = hyper(0.0, "L2 penalty")
    K: int = hyper(2, "how often gradient and momentum are projected on each other")
    xi: float = hyper(1e-20, "added to the squared norms", above=0.0, excluded="would divide by 0")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return aida(group["K"])
