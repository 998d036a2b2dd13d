"""Ranger21 without the Lookahead around it."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, Scalars, hyper
from hfoptim.engine.rule import TENSOR, Probe, Rule, bias_correction, ema, nonnegative, zeros
from hfoptim.optimizers.shared.two_momenta import turns, two_momenta

# What a gradient's deviation is divided with, and from where on a softplus is a line, as torch has it.
_EPS, _STRAIGHT = 1e-8, 20.0


def _second_rate(t: int, group: Group) -> Scalars:
    beta2 = group["betas"][1]
    return {"alpha2": 1.0 - beta2, "inverse": 1.0 / bias_correction(beta2, t)}


def _per_step(t: int, group: Group, moment: Tensor, entries: Tensor) -> Scalars:
    beta1, beta2 = group["betas"]
    # The 1 is pytorch_optimizer's; gradients that are all 0 leave something to divide by.
    size = ((1.0 + moment) / entries).sqrt()
    share = group["weight_decay"] / size
    lr = float(group["lr"])
    scalars = {"alpha2": 1.0 - beta2, **turns(t, beta1, group["beta0"])}
    scalars |= {"inverse1": 1.0 / bias_correction(beta1, t), "root2": 1.0 / math.sqrt(bias_correction(beta2, t))}
    scalars |= {"eps": group["eps"], "beta": group["beta_softplus"], "straight": _STRAIGHT / group["beta_softplus"]}
    scalars |= {"share": share, "left": (1.0 - lr * share).abs(), "pull": 2.0 * group["norm_loss_factor"]}
    return {**scalars, "rate": lr}


def _normalized(grad: Any) -> tuple[Any, Any]:
    """The gradient divided by its standard deviation, and what the author's second division does to it."""
    entries = torch.ones_like(grad).sum()
    rest = grad - grad.mean()
    deviation = ((rest * rest).sum() / (entries - 1.0).clamp(min=1.0)).sqrt()
    many = entries > 2.0
    once = torch.where(many, 1.0 / (deviation + _EPS), 1.0)
    return grad * once, torch.where(many, 1.0 / (deviation * once + _EPS), 1.0)


def _second_moments(normalize: bool) -> Any:
    def sums(grad: Any, param: Any, grad_ma: Any, neg_grad_ma: Any, variance_ma: Any, *args: Any) -> dict[str, Any]:
        """The sum of all bias-corrected second moments with the new gradients in them, and how many they are."""
        h = args[-1]
        entries = torch.ones_like(grad).sum()
        grad = _normalized(grad)[0] if normalize else grad
        return {"moment": ema(variance_ma, grad * grad, h.alpha2).sum() * h.inverse, "entries": entries}

    return sums


@cache
def ranger21(normalize: bool, softplus: bool, dims: tuple[int, ...]) -> Rule:
    """The rule.

    Args:
        normalize: whether gradients are divided by their deviation.
        softplus: whether what is divided by is smoothed.
        dims: the dimensions of the units whose norms are drawn to 1; (): all.
    """

    def fn(
        grad: Any, param: Any, grad_ma: Any, neg_grad_ma: Any, variance_ma: Any, max_variance_ma: Any, h: Any
    ) -> tuple[Any, ...]:
        grad, again = _normalized(grad) if normalize else (grad, 1.0)
        variance_ma = ema(variance_ma, grad * grad, h.alpha2)
        max_variance_ma = torch.maximum(max_variance_ma, variance_ma)
        divisor = max_variance_ma.sqrt() * h.root2 + h.eps
        if softplus:
            smooth = (divisor.clamp(max=h.straight) * h.beta).exp().log1p() / h.beta
            divisor = torch.where(divisor > h.straight, divisor, smooth)
        step, grad_ma, neg_grad_ma = two_momenta(grad * again, grad_ma, neg_grad_ma, h)
        # The decay, and of what it left the pull of norms to 1: p (1 - lr share) (1 - lr pull), as an update.
        norm = param.norm(2, dims, True) if dims else param.norm(2, None, False)
        pull = h.pull - h.pull / (norm * h.left + h.eps)
        towards = param * (h.share + pull - pull * (h.share * h.rate))
        return step / divisor * h.inverse1 + towards, grad_ma, neg_grad_ma, variance_ma, max_variance_ma

    fn.__name__ = "ranger21"
    state = {"grad_ma": zeros, "neg_grad_ma": zeros, "variance_ma": nonnegative, "max_variance_ma": nonnegative}
    return Rule(fn, TENSOR, state, _per_step, Probe(_second_moments(normalize), _second_rate, of_tensors=normalize))


class Ranger21Base(RuleOptimizer):
    """AdamW with positive-negative momentum, normalised gradients, stable decay and norm loss: Ranger21 less Lookahead.

    With g the gradient, p the parameter, t the step, N the number of all parameters' entries, m and n momenta that
    change places after every step, std over the entries of a tensor with more than 2, and |.| the norm of the part of p
    that belongs to an index of its first dimension (of all of a vector):

        g = g / (std(g) + 1e-8)
        v = beta2 v + (1 - beta2) g^2;  w = max(w, v);  s = sqrt((1 + sum of all v / (1 - beta2^t)) / N)
        m = beta1^2 m + (1 - beta1^2) g / (std(g) + 1e-8)
        d = ((1 + beta0) m - beta0 n) / sqrt((1 + beta0)^2 + beta0^2)
        q = softplus(sqrt(w) / sqrt(1 - beta2^t) + eps),  softplus(x) = log(1 + exp(beta_softplus x)) / beta_softplus
        p = p (1 - lr weight_decay / s)
        p = p (1 - 2 lr norm_loss_factor (1 - 1 / (|p| + eps)))
        p = p - lr d / (1 - beta1^t) / q

    By name `ranger21` it has Lookahead of 5 steps around it; under both names gradients are clipped at 0.01 of the
    norms of weights (`adaptive_clip`) and centralised (`gradient_centralization`) before all this. The author's warm-up
    and linear end are schedules: `warmup_stable_decay` with 2 / (1 - beta2) steps of warm-up, or 22 % of a short
    training, and 28 % of decay. q is never below log(2) / beta_softplus, a 72nd: steps are smaller than Adam's where
    gradients are small. State: `grad_ma` (moved at odd steps), `neg_grad_ma`, `variance_ma` (v), `max_variance_ma` (w).

    Follows pytorch_optimizer. The author's code decays the last parameter of a group alone, keeps no maximum and
    divides by sqrt((1 + beta2)^2 + beta2^2); its beta0 is 1. The MADGRAD and AdaBelief in it are not here.

    Source:
        Wright and Demeure, arXiv 2106.13731; lessw2020/Ranger21.
    """

    decay = Decay.INSIDE
    names = (
        Name(
            "ranger21_base",
            "Ranger21 without Lookahead: positive-negative momentum, stable decay, norm loss, clipped gradients",
            options={"gradient_centralization": True, "adaptive_clip": 0.01},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of the momenta (as its square) and of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of w, and to norms of weights")
    weight_decay: float = hyper(1e-4, "stable weight decay, per step and unit of lr")
    beta0: float = hyper(0.9, "how far the momenta differ")
    beta_softplus: float = hyper(50.0, "sharpness of the softplus", above=0.0, excluded="would divide by 0")
    use_softplus: bool = hyper(True, "smooth what is divided by")
    normalize_gradients: bool = hyper(True, "divide gradients by their standard deviation")
    norm_loss_factor: float = hyper(1e-4, "pull of norms of weights to 1, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        dims = tuple(range(1 - param.ndim, 0)) if param.ndim > 1 else ()
        return ranger21(group["normalize_gradients"], group["use_softplus"], dims)
