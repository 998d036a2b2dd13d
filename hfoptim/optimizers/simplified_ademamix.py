"""Simplified AdEMAMix: one slow sum of gradients in place of AdEMAMix's two averages."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import (
    ELEMENT,
    Group,
    Name,
    Scalars,
    add_scaled,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.half_lives import check_warmup, slower_beta
from hfoptim.optimizers.shared.moments import normed


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    warmup = group["beta1_warmup"]
    if warmup is not None and t < warmup:
        beta1 = slower_beta(group["min_beta1"], beta1, t / warmup)
    root = math.sqrt(bias_correction(beta2, t))
    scalars = {"beta1": beta1, "alpha": group["alpha"], "alpha2": 1.0 - beta2}
    return {**scalars, "eps": group["eps"] * root, "lr": float(group["lr"]) * root}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def simplified_ademamix(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """A sum of gradients and the new one over the root of the second moment."""
    exp_avg = add_scaled(grad, exp_avg, h.beta1)
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
    (update,) = normed(add_scaled(exp_avg, grad, h.alpha), exp_avg_sq, h)
    return update, exp_avg, exp_avg_sq


class SimplifiedAdEMAMix(FullyDecoupling):
    """AdEMAMix with one slow sum of gradients, to which the new gradient is added with a weight of its own.

    With g the gradient, p the parameter, t the step:

        m = b1 m + g
        v = beta2 v + (1 - beta2) g^2
        u = (m + alpha g) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u - lr weight_decay p                        (decouple_lr: - lr / max_lr weight_decay p)

    with b1 = beta1, or during a warm-up of T = beta1_warmup steps

        1 / log(b1) = (1 - t / T) / log(min_beta1) + t / T / log(beta1)

    m is a sum, 1 / (1 - beta1) times an average: lr is to be so much smaller than AdamW's. State: `exp_avg` (m),
    `exp_avg_sq` (v).

    Follows the authors with their default of bias corrections, as optax and NVIDIA do. pytorch_optimizer 4.1 has an
    average in place of the sum, and divides by the root of 1 - beta2^t where it is to multiply.

    Source:
        Morwani et al., Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants,
        arXiv 2502.02431; DepenM/Simplified-AdEMAMix.
    """

    rule = simplified_ademamix
    names = (Name("simplified_ademamix", aliases=("sim_ademamix",)),)
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.99, 0.95), "decay rates of m and v")
    alpha: float = hyper(0.0, "weight of the new gradient beside m")
    beta1_warmup: float | None = hyper(None, "steps over which b1 grows from min_beta1 to beta1; None: no warm-up")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    min_beta1: float = hyper(0.9, "b1 at the beginning of a warm-up", below=1.0)
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["beta1_warmup"] is not None:
            check_warmup({"betas[0]": group["betas"][0], "min_beta1": group["min_beta1"]}, "beta1_warmup")
