"""AdaShift."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.checks import choice
from hfoptim.engine.rule import ELEMENT, TENSOR, Rule, add_scaled, bias_correction, ema, nonnegative, scalar, zeros


def _per_step(t: int, group: Group) -> Scalars:
    (beta1, beta2), window = group["betas"], group["keep_num"]
    weights = sum(beta1**i for i in range(window))
    # Nothing moves before a gradient has become old enough to be divided by.
    moves = t > window
    return {
        "beta1": beta1,
        "oldest": beta1 ** (window - 1) / weights,
        "newest": 1.0 / weights,
        "alpha2": 1.0 - beta2 if moves else 0.0,
        "inverse": 1.0 / bias_correction(beta2, max(1, t - window)),
        "eps": group["eps"],
        "lr": float(group["lr"]) if moves else 0.0,
    }


@cache
def adashift(window: int, reduced: str | None) -> Rule:
    """The rule for a number of gradients that are kept, and one way to make a number of an old one's squares."""

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *queue, exp_avg, exp_avg_sq, h = args
        oldest, *younger = queue
        exp_avg = add_scaled(add_scaled(exp_avg, oldest, -h.oldest) * h.beta1, grad, h.newest)
        squared = oldest * oldest
        if reduced is not None:
            squared = squared.amax() if reduced == "max" else squared.mean()
        exp_avg_sq = ema(exp_avg_sq, squared, h.alpha2)
        update = exp_avg / ((exp_avg_sq * h.inverse).sqrt() + h.eps)
        return (update, *younger, grad, exp_avg, exp_avg_sq)

    fn.__name__ = "adashift"
    kept = {f"grad_{i}": zeros for i in range(window)}
    second = nonnegative if reduced is None else scalar
    return Rule(fn, ELEMENT if reduced is None else TENSOR, {**kept, "exp_avg": zeros, "exp_avg_sq": second}, _per_step)


def _reduction(name: str, value: Any) -> Any:
    """pytorch_optimizer takes functions of torch; those of which there are rules are known."""
    known = {torch.max: "max", torch.amax: "max", torch.mean: "mean"}
    value = known.get(value, value) if callable(value) else value
    return value if value is None else choice(name, value, ("max", "mean"))


class AdaShift(RuleOptimizer):
    """Adam whose second moment is made of gradients from some steps ago, which the present ones do not depend on.

    With g_t the gradient of a tensor at step t, p the parameter, n = keep_num, w the sum of beta1^i for i from 0 to
    n - 1, m the average of the last n gradients, and from step n + 1 on:

        m = beta1 (m - beta1^(n - 1) / w g_(t - n)) + g_t / w
        v = beta2 v + (1 - beta2) max(g_(t - n)^2)
        p = p - lr m / (sqrt(v / (1 - beta2^(t - n))) + eps) - lr weight_decay p

    The first n steps only fill m. With `reduce_func` "max" (or "mean") v is one number per tensor; with None every
    entry has its own. The weight decay is this package's.

    State: `grad_0` (the oldest of the kept gradients) to `grad_<n - 1>`, `exp_avg` (m), `exp_avg_sq` (v): n + 1 times
    the parameter, all of it moved at every step. Follows pytorch_optimizer, whose `reduce_func` is a function of torch.
    zij does not add the first n gradients to m, but takes them from it.

    Raises:
        TypeError: a complex parameter, unless `reduce_func` is None.

    Source:
        Zhou et al., arXiv 1810.00143; pytorch_optimizer 4.1, `AdaShift`.
    """

    names = (Name("adashift"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    keep_num: int = hyper(10, "gradients that are kept", low=1)
    reduce_func: Any = hyper(
        "max", 'what is made of the squares of an old gradient: "max", "mean" or None', check=_reduction
    )
    eps: float = hyper(1e-10, "added to the bias-corrected root of v", above=0.0, excluded="would divide by 0")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adashift(group["keep_num"], group["reduce_func"])
