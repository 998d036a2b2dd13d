"""Yogi."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, Scalars, State, ema, hyper
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.filled import filled
from hfoptim.optimizers.shared.moments import corrected


def _per_step(t: int, group: Group) -> Scalars:
    return {**corrected(t, group), **fixed_decay(group)}


def _yogi(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's update, with a second moment that moves by a share of the new square, not of the distance to it."""
    squared = grad * grad
    exp_avg = ema(exp_avg, grad, h.alpha1)
    exp_avg_sq = exp_avg_sq - (exp_avg_sq - squared).sign() * squared * h.alpha2
    return exp_avg / (exp_avg_sq.sqrt() + h.eps), exp_avg, exp_avg_sq


@cache
def yogi(initial: float) -> Rule:
    """The rule whose moments begin at `initial`."""
    state = {"exp_avg": State(filled(initial).init, compressible=True), "exp_avg_sq": filled(initial)}
    return Rule(_yogi, ELEMENT, state, _per_step)


class Yogi(Decoupling):
    """Adam whose second moment comes down slowly: after large gradients steps stay small for long.

    With g the gradient, p the parameter, t the step, m and v at first `initial_accumulator`:

        m = beta1 m + (1 - beta1) g
        v = v - (1 - beta2) sign(v - g^2) g^2
        p = p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr weight_decay p                               (fixed_decay: - weight_decay p)

    where the decay takes the p from before the step, or without `weight_decouple` g = g + weight_decay p comes first.
    State: `exp_avg` (m), `exp_avg_sq` (v). pytorch_optimizer, torch_optimizer and optax agree; torch_optimizer has L2.

    Source:
        Zaheer et al., Adaptive Methods for Nonconvex Optimization,
        https://papers.nips.cc/paper_files/paper/2018/hash/90365351ccc7437a1309dc64e4db32a3-Abstract.html;
        pytorch_optimizer 4.1, `Yogi`.
    """

    names = (Name("yogi"),)
    lr: float = hyper(1e-2, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    initial_accumulator: float = hyper(1e-6, "first value of m and v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-3, "added to the bias-corrected root of v")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return yogi(group["initial_accumulator"])
