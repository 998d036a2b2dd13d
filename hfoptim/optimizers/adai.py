"""Adaptive inertia: Adai and AdaiV2."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Decay, Group, Name, RuleOptimizer, Scalars, State, hyper
from hfoptim.engine.rule import ELEMENT, Probe, Rule, bias_correction, ema, nonnegative, zeros
from hfoptim.optimizers.shared.filled import filled

# Least mean of second moments: float32 has its inverse, too.
_LEAST = 1e-30


def _correction(t: int, group: Group) -> Scalars:
    beta2 = group["betas"][1]
    return {"alpha2": 1.0 - beta2, "inverse": 1.0 / bias_correction(beta2, t)}


def _second_moments(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, beta1_prod: Any, h: Any) -> dict[str, Any]:
    """The sum of all bias-corrected second moments with the new gradients in them, and how many they are."""
    moments = ema(exp_avg_sq, grad * grad, h.alpha2) * h.inverse
    return {"moment": moments.sum(), "entries": torch.ones_like(grad).sum()}


def _per_step(t: int, group: Group, moment: Tensor, entries: Tensor) -> Scalars:
    corrected = _correction(t, group)
    beta0, dampening = group["betas"][0], group.get("dampening", 1.0)
    # Where all moments are 0, so is every ratio.
    mean = (moment / entries).clamp(min=_LEAST)
    scalars = {"alpha2": corrected["alpha2"], "ratio": corrected["inverse"] / mean, "beta0": beta0}
    scalars |= {"most": 1.0 - group["eps"], "lr": float(group["lr"]) * beta0 ** (1.0 - dampening)}
    if dampening != 1.0:
        scalars |= {"dampening": dampening, "exponent": 1.0 / (3.0 - 2.0 * dampening)}
    return scalars


@cache
def adai(damped: bool) -> Rule:
    """The rule; `damped` where the new gradient does not weigh 1 - beta1."""

    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, beta1_prod: Any, h: Any) -> tuple[Any, ...]:
        exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha2)
        ratio = exp_avg_sq * h.ratio
        beta1 = (1.0 - (ratio**h.exponent if damped else ratio) * h.beta0).clamp(min=0.0, max=h.most)
        beta1_prod = beta1_prod * beta1
        weight = 1.0 - beta1
        exp_avg = exp_avg * beta1 + grad * (weight**h.dampening if damped else weight)
        return exp_avg / (1.0 - beta1_prod), exp_avg, exp_avg_sq, beta1_prod

    fn.__name__ = "adai"
    state = {"exp_avg": zeros, "exp_avg_sq": nonnegative, "beta1_prod": State(filled(1.0).init, signed=False)}
    return Rule(fn, ELEMENT, state, _per_step, Probe(_second_moments, _correction))


class Adai(RuleOptimizer):
    """SGD whose momentum is adapted, not its learning rate: where gradients are large, the past counts less.

    With g the gradient, p the parameter, t the step, k a step, and the mean over all entries of all parameters:

        g = g + weight_decay p
        v = beta2 v + (1 - beta2) g^2;  w = v / (1 - beta2^t)
        beta1 = clip(1 - beta0 w / mean(w), 0, 1 - eps)
        m = beta1 m + (1 - beta1) g
        p = p - lr m / (1 - product of beta1 over all k)

    or under `decoupled`, g as it is, p - ... - lr weight_decay p. Wants a learning rate near that of SGD. State:
    `exp_avg` (m), `exp_avg_sq` (v), `beta1_prod`. Author and pytorch_optimizer agree; the author's lr has no default.

    Source:
        Xie et al., arXiv 2006.15815; zeke-xie/adaptive-inertia-adai.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled"
    rule = adai(damped=False)
    names = (Name("adai"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.1, 0.99), "beta0, how much inertia is lost, and decay rate of v")
    eps: float = hyper(1e-3, "1 less the largest beta1", above=0.0, below=1.0, excluded="would divide by 0")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    decoupled: bool = hyper(False, "decoupled weight decay")


class AdaiV2(RuleOptimizer):
    """Adai with a dampening between SGD's momentum (0) and Adai's (1), and decoupled weight decay.

    With g the gradient, p the parameter, t the step, k a step, d = dampening, the mean over all entries:

        v = beta2 v + (1 - beta2) g^2;  w = v / (1 - beta2^t)
        beta1 = clip(1 - beta0 (w / mean(w))^(1 / (3 - 2 d)), 0, 1 - eps)
        m = beta1 m + (1 - beta1)^d g
        p = p - lr beta0^(1 - d) m / (1 - product of beta1 over all k) - lr weight_decay p

    or without `decoupled`, g = g + weight_decay p before it. State: `exp_avg` (m), `exp_avg_sq` (v), `beta1_prod`.
    Author and pytorch_optimizer (`Adai` with its defaults changed) agree; the author's lr has no default.

    Source:
        Xie et al., arXiv 2006.15815; zeke-xie/adaptive-inertia-adai, `adaiv2.py`.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled"
    names = (Name("adaiv2"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.1, 0.99), "beta0, how much inertia is lost, and decay rate of v")
    eps: float = hyper(1e-3, "1 less the largest beta1", above=0.0, below=1.0, excluded="would divide by 0")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    dampening: float = hyper(1.0, "exponent of the gradient's weight", most=1.0)
    decoupled: bool = hyper(True, "decoupled weight decay; False adds it to the gradient")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adai(group["dampening"] != 1.0)
