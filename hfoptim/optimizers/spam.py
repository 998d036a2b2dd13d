"""SPAM and Stable-SPAM: Adam that clips spikes of the gradient and starts its momentum afresh now and then."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    TENSOR,
    Decay,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    bias_correction,
    ema,
    hyper,
    noise,
    nonnegative,
    rule,
    scalar,
    zeros,
)
from hfoptim.optimizers.shared.moments import corrected, folded, moments_step


def _cosine(k: int, length: int, least: float) -> float:
    """From 1 to `least`, at k of 0 to length."""
    return least + (1.0 - least) * 0.5 * (1.0 + math.cos(math.pi * k / (length + 1))) if k < length else least


def _spam_scalars(t: int, group: Group) -> Scalars:
    since, warmup, settled = t % group["update_proj_gap"], group["warmup_steps"], group["grad_accu_steps"]
    warms_up = t >= group["update_proj_gap"] and since < warmup
    lr = float(group["lr"]) * (1.0 - 0.99 * _cosine(since, warmup, 0.0) if warms_up else 1.0)
    clips = group["threshold"] > 0.0 and t >= settled and since >= settled
    return {
        **folded(t, {**group, "lr": lr}),
        "kept": float(since != 0),
        "threshold": group["threshold"],
        "above": 0.0 if clips else math.inf,
    }


@rule(ELEMENT, per_step=_spam_scalars, exp_avg=zeros, exp_avg_sq=nonnegative)
def spam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's step with entries of the gradient clipped that are large beside their second moment."""
    exp_avg, exp_avg_sq = exp_avg * h.kept, exp_avg_sq * h.kept
    most = (exp_avg_sq * h.threshold).sqrt() + h.above
    return moments_step(torch.maximum(torch.minimum(grad, most), -most), param, exp_avg, exp_avg_sq, h)


def _sparse_scalars(t: int, group: Group) -> Scalars:
    return {**_spam_scalars(t, group), "rate": float(group["lr"]), "chosen": NormalDist().inv_cdf(group["density"])}


def _sparse(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, mask_noise: Any, h: Any) -> tuple[Any, ...]:
    """The step of the entries whose number says so; the others' moments are not looked at before they are reset."""
    update, exp_avg, exp_avg_sq = spam.fn(grad, param, exp_avg, exp_avg_sq, h)
    chosen = (mask_noise < h.chosen).to(update.dtype)
    return update * h.lr * chosen, chosen * h.rate, exp_avg, exp_avg_sq, None


_renewed = replace(noise, redrawn=lambda t, group: t % group["update_proj_gap"] == 0)
_SPARSE = Rule(
    _sparse, ELEMENT, {**spam.state, "mask_noise": _renewed}, per_step=_sparse_scalars, returns_step_size=True
)


class SPAM(RuleOptimizer):
    """Adam with spikes of the gradient clipped and its moments set to 0 every update_proj_gap steps.

    With g the gradient, p the parameter, t the step, k = t modulo update_proj_gap:

        if k = 0:  m = v = 0
        if g^2 > threshold v:  g = sign(g) sqrt(threshold v)             (from k = grad_accu_steps on)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr s sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p = p - lr weight_decay p

    s is 1, but in the first warmup_steps steps after a reset 1 - 0.99 (1 + cos(pi k / (warmup_steps + 1))) / 2.
    State: `exp_avg` (m), `exp_avg_sq` (v). An entry whose v is 0 stays at 0 once spikes are clipped, until the next
    reset.

    With a `density` below 1 (sparse momentum) each entry of a matrix steps and decays by that chance only, drawn anew
    at every reset; with parameters of other dimensions nothing changes. What is drawn goes by the entry's index and by
    the place of its parameter in the optimizer: the same on every rank, and after a checkpoint. It is one state more,
    `mask_noise`, and the moments stay whole, so this saves no memory, which the author's does.

    The author's first mask has exactly the share of entries that `density` says, by chance is every later one of his;
    with a density his weight decay changes nothing, as it goes to a copy. pytorch_optimizer 4.1 has the cosine of
    k + 1, and other defaults.

    Raises:
        TypeError: a complex matrix, with a density.

    Source:
        Huang et al., SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, arXiv 2501.06842;
        TianjinYellow/SPAM-Optimizer.
    """

    decay = Decay.DECOUPLED_AFTER
    rule = spam
    names = (Name("spam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-6, "added to the root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    correct_bias: bool = hyper(True, "correct the moments for beginning at 0")
    warmup_steps: int = hyper(150, "steps of the warm-up after a reset", low=0)
    threshold: float = hyper(5000.0, "largest g^2, relative to v; 0 does not clip")
    update_proj_gap: int = hyper(500, "steps between resets (the author's DeltaT)", low=1)
    grad_accu_steps: int = hyper(20, "steps after a reset without clipping", low=0)
    _: KW_ONLY
    density: float = hyper(
        1.0, "share of a matrix' entries that step between two resets", above=0.0, most=1.0, in_peers=False
    )

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        if group["density"] == 1.0 or param.ndim != 2:
            return spam
        if param.is_complex():
            raise TypeError(f"density={group['density']!r} is not for complex matrices; leave it out")
        return _SPARSE


def _stable_scalars(t: int, group: Group) -> Scalars:
    gap, length, (beta1, beta2) = group["update_proj_gap"], group["t_max"], group["betas"]
    scale = 1.0 if length is None else _cosine(t, length, group["eta_min"])
    since = t if gap == 0 or t < gap else t % gap + 1
    gamma1, gamma2, theta = (
        (beta1 if group["gamma1"] == -1.0 else group["gamma1"]) * scale,
        group["gamma2"],
        group["theta"],
    )
    # Both averages of the norm divided by their bias corrections c1, c2:
    # (m / c1) / (sqrt(v / c2) + eps)  =  (sqrt(c2) / c1) m / (sqrt(v) + eps sqrt(c2))
    root = math.sqrt(bias_correction(gamma2, t))
    return {
        **corrected(since, {**group, "betas": (beta1 * scale, beta2)}),
        "kept": float(gap == 0 or t % gap != 0),
        "alpha_norm": 1.0 - gamma1,
        "alpha_norm_sq": 1.0 - gamma2,
        "alpha_max": 1.0 - theta,
        "max_scale": 1.0 / bias_correction(theta, t),
        "norm_scale": root / bias_correction(gamma1, t),
        "norm_eps": group["eps"] * root,
    }


@rule(
    TENSOR,
    per_step=_stable_scalars,
    exp_avg=zeros,
    exp_avg_sq=nonnegative,
    m_norm_t=scalar,
    v_norm_t=scalar,
    m_max_t=scalar,
)
def stable_spam(
    grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, norm: Any, norm_sq: Any, largest: Any, h: Any
) -> tuple[Any, ...]:
    """Adam's step with large entries of the gradient, and its norm, brought to what they were on average."""
    size = abs(grad)
    of_all = size.amax()
    largest = ema(largest, of_all, h.alpha_max)
    most = largest * h.max_scale
    grad = torch.where(size > most, grad * (most / of_all), grad)
    squared = grad.square().sum()
    norm, norm_sq = ema(norm, squared.sqrt(), h.alpha_norm), ema(norm_sq, squared, h.alpha_norm_sq)
    wanted = norm * h.norm_scale / (norm_sq.sqrt() + h.norm_eps)
    grad = grad * (wanted / torch.where(squared > 0, squared.sqrt(), 1.0))
    return *moments_step(grad, param, exp_avg * h.kept, exp_avg_sq * h.kept, h), norm, norm_sq, largest


class StableSPAM(RuleOptimizer):
    """SPAM for training in few bits: spikes and norms of the gradient are brought to what they were on average.

    With g the gradient, p the parameter, t the step, n counting the steps since the last reset from 1:

        every update_proj_gap steps:  m = v = 0
        x = theta x + (1 - theta) max|g|;  y = x / (1 - theta^t)
        where |g| > y:  g = g / max|g| y
        a = gamma1 a + (1 - gamma1) |g|;   b = gamma2 b + (1 - gamma2) |g|^2
        g = g / |g| (a / (1 - gamma1^t)) / (sqrt(b / (1 - gamma2^t)) + eps)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr weight_decay p - lr m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + eps)

    With `t_max`, beta1 and gamma1 are multiplied by a cosine from 1 to eta_min over so many steps. State: `exp_avg`
    (m), `exp_avg_sq` (v), and one number each, `m_norm_t` (a), `v_norm_t` (b), `m_max_t` (x).

    Follows pytorch_optimizer 4.1. The author's code corrects x, a and b by n, too, though it does not set them to 0,
    steps once more with the old m and v at a reset, and has a cosine that rises again after t_max. The cosine is the
    author's, which pytorch_optimizer's is not quite; that also passes over gradients that are all 0.

    Raises:
        TypeError: a complex parameter.

    Source:
        Huang et al., Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, arXiv 2502.17055;
        TianjinYellow/StableSPAM.
    """

    rule = stable_spam
    names = (Name("stablespam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    gamma1: float = hyper(0.7, "decay rate of a; -1 is beta1", low=-1.0, below=1.0)
    gamma2: float = hyper(0.9, "decay rate of b", below=1.0)
    theta: float = hyper(0.999, "decay rate of x", below=1.0)
    t_max: int | None = hyper(None, "steps of the cosine; None has none", low=1)
    eta_min: float = hyper(0.5, "end of the cosine", most=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    update_proj_gap: int = hyper(1000, "steps between resets; 0 never resets", low=0)
    eps: float = hyper(1e-8, "added to the bias-corrected roots of v and b")
