"""DiffGrad."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Decay, Name, RuleOptimizer, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.moments import folded, moments_step


@rule(ELEMENT, per_step=folded, exp_avg=zeros, exp_avg_sq=nonnegative, previous_grad=zeros)
def diffgrad(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, previous_grad: Any, h: Any) -> tuple[Any, ...]:
    """Adam's update, more of it where the gradient has changed."""
    update, exp_avg, exp_avg_sq = moments_step(grad, param, exp_avg, exp_avg_sq, h)
    return update * abs(previous_grad - grad).sigmoid(), exp_avg, exp_avg_sq, grad


class DiffGrad(RuleOptimizer):
    """Adam with a friction: steps are halved where the gradient does not change, whole where it changes much.

    With g the gradient, g' the one before (at the first step 0), p the parameter, t the step:

        g = g + weight_decay p
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        c = 1 / (1 + exp(-|g - g'|))
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) c m / (sqrt(v) + eps)

    State: `exp_avg` (m), `exp_avg_sq` (v), `previous_grad` (g').

    Follows the author's second file; in the first one, that of the paper's experiments, g' was g itself, so c was 1/2.
    pytorch_optimizer has sqrt(v + 1e-15), and with `weight_decouple`, its default, the decay outside of the gradient.

    Source:
        Dubey et al., arXiv 1909.11015; shivram1987/diffGrad, `diffGrad_v2.py`.
    """

    rule = diffgrad
    decay = Decay.COUPLED
    names = (Name("diffgrad"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "L2 penalty")
