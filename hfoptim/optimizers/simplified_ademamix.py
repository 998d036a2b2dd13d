"""Simplified AdEMAMix: one slow sum of gradients in place of AdEMAMix's two averages."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from itertools import accumulate
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


@cache
def _weights(beta1: float, min_beta1: float, warmup: float) -> list[float]:
    """The sum of the weights that m gives to the gradients so far, after each step of a warm-up."""
    betas = (_slow_beta(t, beta1, min_beta1, warmup) for t in range(1, math.ceil(warmup) + 1))
    return list(accumulate(betas, lambda weight, beta: beta * weight + 1.0, initial=0.0))


def _slow_beta(t: int, beta1: float, min_beta1: float, warmup: float | None) -> float:
    return beta1 if warmup is None or t >= warmup else slower_beta(min_beta1, beta1, t / warmup)


def _weight(t: int, group: Group) -> float:
    """The same after step `t`: a sum of the powers of beta1 but for the warm-up."""
    beta1: float = group["betas"][0]
    warmup = group["beta1_warmup"] or 0.0
    of_warmup = _weights(beta1, group["min_beta1"], warmup)
    since = t - len(of_warmup) + 1
    if since <= 0:
        return of_warmup[t]
    return of_warmup[-1] * beta1**since + bias_correction(beta1, since) / (1.0 - beta1)


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2 = group["betas"]
    root, lr = math.sqrt(bias_correction(beta2, t)), float(group["lr"])
    scalars = {"beta1": _slow_beta(t, beta1, group["min_beta1"], group["beta1_warmup"]), "alpha": group["alpha"]}
    lr *= root if group["bias_correction2"] else 1.0
    lr /= _weight(t, group) if group["bias_correction1"] else 1.0
    return {**scalars, "alpha2": 1.0 - beta2, "eps": group["eps"] * root, "lr": lr}


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

    m is a sum, 1 / (1 - beta1) times an average: lr is to be so much smaller than AdamW's. With `bias_correction1` u is
    divided by the sum of the weights in m, about 1 / (1 - beta1) later on. Without `bias_correction2`,
    u = (m + alpha g) / (sqrt(v) + eps sqrt(1 - beta2^t)). State: `exp_avg` (m), `exp_avg_sq` (v).

    Follows the authors, whose defaults optax and NVIDIA have, too. pytorch_optimizer 4.1 has an
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
    _: KW_ONLY
    bias_correction1: bool = hyper(False, "divide by the sum of the weights in m")
    bias_correction2: bool = hyper(True, "correct v for beginning at 0")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        if group["beta1_warmup"] is not None:
            check_warmup({"betas[0]": group["betas"][0], "min_beta1": group["min_beta1"]}, "beta1_warmup")
