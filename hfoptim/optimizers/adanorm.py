"""AdaNorm: Adam whose momentum is fed gradients no smaller than they used to be."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import TENSOR, Rule, ema, nonnegative, scalar, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import corrected, normed


def _per_step(t: int, group: Group) -> Scalars:
    return {**corrected(t, group), **fixed_decay(group), "alpha_norm": 1.0 - group["r"]}


@cache
def adanorm(amsgrad: bool) -> Rule:
    """The rule, with or without AMSGrad."""

    # Passes over memory, in tensors of the parameter's size:
    #   the gradient's norm: read grad                                          1
    #   update: read grad, param, m, v; write param, m, v                       7
    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_var: Any, exp_grad_norm: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        norm = grad.norm()
        exp_grad_norm = ema(exp_grad_norm, norm, h.alpha_norm)
        larger = torch.where(norm > 0, (exp_grad_norm / norm).clamp(min=1.0), 1.0)
        exp_avg = ema(exp_avg, grad * larger, h.alpha1)
        exp_avg_var = ema(exp_avg_var, grad * grad, h.alpha2)
        update, *largest = normed(exp_avg, exp_avg_var, *args)
        return (update, exp_avg, exp_avg_var, exp_grad_norm, *largest)

    fn.__name__ = "adanorm"
    state = {"exp_avg": zeros, "exp_avg_var": nonnegative, "exp_grad_norm": scalar}
    return Rule(fn, TENSOR, {**state, "max_exp_avg_var": nonnegative} if amsgrad else state, _per_step)


class AdaNorm(Decoupling):
    """Adam whose momentum sees a tensor's gradient with the norm it had lately, where that was larger.

    With g the gradient of a tensor, p the parameter, t the step:

        e = r e + (1 - r) |g|
        m = beta1 m + (1 - beta1) g max(1, e / |g|)
        v = beta2 v + (1 - beta2) g^2;  with amsgrad, w = max(w, v) takes its place below
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u - lr weight_decay p                        (fixed_decay: - weight_decay p)

    or with weight_decouple=False g = g + weight_decay p at the beginning. State: `exp_avg` (m), `exp_avg_var` (v),
    `exp_grad_norm` (e, one number), `max_exp_avg_var` (w) with amsgrad.

    The paper puts eps where it stands here; the authors' code adds it to v as well, in the state itself, and
    pytorch_optimizer divides it by the bias correction, and adds 1e-15 to v. Defaults are those of pytorch_optimizer;
    the authors take a beta2 of 0.999.

    Raises:
        TypeError: a complex parameter.

    Source:
        Dubey et al., AdaNorm: Adaptive Gradient Norm Correction based Optimizer for CNNs, arXiv 2210.06364;
        shivram1987/AdaNorm, `AdamNorm`.
    """

    names = (Name("adanorm", aliases=("adam_norm",)),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    r: float = hyper(0.95, "decay rate of the norm", below=1.0)
    weight_decay: float = hyper(0.0, "coefficient of the decay that the next two options select")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    amsgrad: bool = hyper(False, "divide by the largest v so far (AMSGrad)")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adanorm(group["amsgrad"])
