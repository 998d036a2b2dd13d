"""AdaGC: AdamW with gradients clipped, tensor by tensor, at the norm they usually have."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import (
    TENSOR,
    Group,
    Name,
    Probe,
    RuleOptimizer,
    Scalars,
    ema,
    hyper,
    nonnegative,
    rule,
    scalar,
    zeros,
)
from hfoptim.optimizers.shared.clipping import squared_norm
from hfoptim.optimizers.shared.moments import corrected, moments_step

# More than any norm, and finite times 0.
_LARGE = 1e37


def _per_step(t: int, group: Group, grad_sq: Any) -> Scalars:
    warms_up = t == 1 or t < group["warmup_steps"]
    return {
        **corrected(t, group),
        "clip": (group["lambda_abs"] / (grad_sq.sqrt() + group["eps"])).clamp(max=1.0),
        "warm": float(warms_up),
        "above": _LARGE if t == 1 else 0.0,
        "relative": group["lambda_rel"],
        "least": group["eps"],
        "alpha": 1.0 - group["beta"],
    }


@rule(TENSOR, per_step=_per_step, probe=Probe(squared_norm), exp_avg=zeros, exp_avg_sq=nonnegative, gamma=scalar)
def adagc(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, gamma: Any, h: Any) -> tuple[Any, ...]:
    """Adam's step with a clipped gradient, and the average of the norms that gradients had after it."""
    norm = grad.norm()
    usual = h.relative * gamma.clamp(min=h.least) / norm.clamp(min=h.least)
    factor = h.clip * h.warm + usual.clamp(max=1.0) * (1.0 - h.warm)
    norm = norm * factor
    # While it warms up, the least norm so far.
    least, average = torch.minimum(gamma + h.above, norm), ema(gamma, norm, h.alpha)
    gamma = least * h.warm + average * (1.0 - h.warm)
    return *moments_step(grad * factor, param, exp_avg, exp_avg_sq, h), gamma


class AdaGC(RuleOptimizer):
    """AdamW with adaptive gradient clipping: no tensor's gradient far above the norm that its gradients had.

    With N the norm of all gradients together, g the gradient, p the parameter, t the step:

        h = min(1, lambda_abs / (N + eps))                               (in the first warmup_steps - 1 steps)
        h = min(1, lambda_rel max(c, eps) / max(|g|, eps))               (later)
        g = h g
        c = min(c, |g|)                                                  (in those steps, the first: c = |g|)
        c = beta c + (1 - beta) |g|                                      (later)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    State: `exp_avg` (m), `exp_avg_sq` (v), `gamma` (c, one number). Follows pytorch_optimizer 4.1.

    Raises:
        TypeError: a complex parameter.

    Source:
        Wang et al., AdaGC: Improving Training Stability for Large Language Model Pretraining, arXiv 2502.11034.
    """

    rule = adagc
    names = (Name("adagc"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    beta: float = hyper(0.98, "decay rate of c", below=1.0)
    lambda_abs: float = hyper(1.0, "norm of all gradients together during the warm-up", above=0.0)
    lambda_rel: float = hyper(1.05, "norm of a gradient, relative to c", above=0.0)
    warmup_steps: int = hyper(100, "the step from which on norms are relative", low=0)
    weight_decay: float = hyper(0.1, "decoupled weight decay, per step and unit of lr")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v, and least norm", above=0.0)
