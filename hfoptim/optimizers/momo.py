"""MoMo: momentum with a step size that follows from a model of the loss, for SGD and for Adam."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

import torch

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    Probe,
    Rule,
    RuleOptimizer,
    RunState,
    Scalars,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    zeros,
)
from hfoptim.optimizers.shared.moments import moment_rates, moments_step

_TOTALS = ("dot", "grad_dot", "norm")


def _advance(beta: float, corrected: bool, state: Group, totals: Group, group: Group) -> dict[str, Any]:
    """The averages of the loss and of <g, p>, the bound of the loss, and the step size."""
    k = state["k"] + 1
    alpha = 1.0 if k == 1 and not corrected else 1.0 - beta
    rho = bias_correction(beta, k) if corrected else 1.0
    lr = float(group["lr"])
    grown, least, bound = 1.0 + lr * group["weight_decay"], group["lb"], state["fstar"]
    loss_avg = ema(state["loss_avg"], totals["loss"], alpha)
    gamma = ema(state["gamma"], totals["grad_dot"], alpha)
    if group["use_fstar"]:
        cap = grown * (loss_avg - gamma) + totals["dot"]
        reset = (cap / (2.0 * grown * rho)).clamp(min=least)
        bound = torch.where(cap < grown * rho * bound, reset, bound)
    gain = (grown * (loss_avg - rho * bound - gamma) + totals["dot"]).clamp(min=0.0)
    size = torch.where(totals["norm"] > 0.0, gain / totals["norm"], 0.0).clamp(max=lr / rho)
    if group["use_fstar"]:
        bound = ((loss_avg + totals["dot"] - gamma - 0.5 * size * totals["norm"]) / rho).clamp(min=least)
    return {"loss_avg": loss_avg, "gamma": gamma, "fstar": bound, "k": k, "size": size}


def _run_state(beta: str, corrected: str) -> RunState:
    """The numbers of a run, of options by these names."""

    def advance(state: Group, totals: Group, group: Group) -> dict[str, Any]:
        rate = group[beta]
        return _advance(rate[0] if isinstance(rate, tuple) else rate, group.get(corrected, True), state, totals, group)

    first = {"loss_avg": 0.0, "gamma": 0.0, "fstar": itemgetter("lb"), "k": 0}
    return RunState(first, advance, totals=_TOTALS)


def _proximal(group: Group) -> float:
    """Dividing by 1 + x is a decay by x / (1 + x)."""
    decay: float = float(group["lr"]) * group["weight_decay"]
    return decay / (1.0 + decay)


def _rate(t: int, group: Group) -> Scalars:
    return {"alpha": 1.0 if t == 1 and not group["bias_correction"] else 1.0 - group["beta"]}


def _momo_scalars(t: int, group: Group, size: Any, **totals: Any) -> Scalars:
    return {**_rate(t, group), "lr": size, "decay": _proximal(group)}


def _sums(grad: Any, param: Any, grad_avg: Any, h: Any) -> dict[str, Any]:
    grad_avg = ema(grad_avg, grad, h.alpha)
    products = {"dot": param * grad_avg, "grad_dot": param * grad, "norm": grad_avg * grad_avg}
    return {name: product.sum() for name, product in products.items()}


def _step(grad: Any, param: Any, grad_avg: Any, h: Any) -> tuple[Any, Any]:
    grad_avg = ema(grad_avg, grad, h.alpha)
    return grad_avg, grad_avg


class Momo(RuleOptimizer):
    """Momentum whose step size is how far a model of the loss, made of past losses and gradients, is above its bound.

    With L the loss, g the gradient, p the parameter, <,> and |.| over all parameters together, at the first step d = g,
    f = L, c = <g, p>:

        d = beta d + (1 - beta) g;  f = beta f + (1 - beta) L;  c = beta c + (1 - beta) <g, p>
        w = 1 + lr weight_decay;    r = 1
        s = min(lr / r, max(0, w (f - r lb - c) + <d, p>) / |d|^2)
        p = p - s d;  p = p / w

    With `bias_correction` d, f and c begin at 0, and r = 1 - beta^t. With `use_fstar` lb is estimated: first lowered to
    half of (f - c + <d, p> / w) / r where that is below lb, and after the step size raised to
    (f + <d, p> - c - s |d|^2 / 2) / r, never below the lb given.

    lr is a bound of the step size, so it may be large. Needs the loss: `step(loss=loss.detach())`, `step(closure)`, or
    `add_loss(loss)` before `step()`; the Trainer tells it. Under `maximize` L is what was told with the other sign, and
    lb bounds that. State: `grad_avg` (d); in the groups `loss_avg` (f), `gamma` (c), `fstar` (lb), `k` (t). Each group
    has a step size of its own lr and weight decay.

    Source:
        Schaipp et al., MoMo: Momentum Models for Adaptive Learning Rates, arXiv 2305.07583; fabian-sp/MoMo.
    """

    decay = Decay.DECOUPLED_AFTER
    needs_loss = True
    rule = Rule(_step, ELEMENT, {"grad_avg": zeros}, _momo_scalars, Probe(_sums, _rate))
    run_state = _run_state("beta", "bias_correction")
    names = (Name("momo"),)
    lr: float = hyper(1.0, "largest step size")
    weight_decay: float = hyper(0.0, "proximal weight decay, per step and unit of lr")
    beta: float = hyper(0.9, "decay rate of d, f and c", below=1.0)
    lb: float = hyper(0.0, "lower bound of the loss", low=-math.inf)
    bias_correction: bool = hyper(False, "let the averages begin at 0, and correct that")
    use_fstar: bool = hyper(False, "estimate the bound")


def _adam_rates(t: int, group: Group) -> Scalars:
    """What both moments go by: (m, d) with d = m / (sqrt(v / c2) + eps) = sqrt(c2) m / (sqrt(v) + eps sqrt(c2))."""
    root = math.sqrt(bias_correction(group["betas"][1], t))
    return {**moment_rates(t, group), "eps": group["eps"] * root, "root": root}


def _adam_scalars(t: int, group: Group, size: Any, **totals: Any) -> Scalars:
    scalars = _adam_rates(t, group)
    scalars["lr"] = size * scalars["root"]
    return {**scalars, "decay": _proximal(group)} if group["divide"] else scalars


def _adam_sums(grad: Any, param: Any, grad_avg: Any, grad_avg_sq: Any, h: Any) -> dict[str, Any]:
    update, grad_avg, _ = moments_step(grad, param, grad_avg, grad_avg_sq, h)
    products = {"dot": param * grad_avg, "grad_dot": param * grad, "norm": grad_avg * update * h.root}
    return {name: product.sum() for name, product in products.items()}


class MomoAdam(RuleOptimizer):
    """Adam whose step size is how far a model of the loss, made of past losses and gradients, is above its bound.

    With L the loss, g the gradient, p the parameter, t the step, <,> over all parameters together:

        d = beta1 d + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  D = sqrt(v / (1 - beta2^t)) + eps
        f = beta1 f + (1 - beta1) L;  c = beta1 c + (1 - beta1) <g, p>
        w = 1 + lr weight_decay;      r = 1 - beta1^t
        s = min(lr / r, max(0, w (f - r lb - c) + <d, p>) / <d, d / D>)
        p = p - s d / D;  p = p / w                             (divide=False: p - lr weight_decay p - s d / D)

    `use_fstar` estimates lb as `Momo` does. lr is a bound of the step size, so it may be large. Needs the loss:
    `step(loss=loss.detach())`, `step(closure)`, or `add_loss(loss)` before `step()`; the Trainer tells it.
    State: `grad_avg` (d), `grad_avg_sq` (v); in the groups `loss_avg` (f), `gamma` (c), `fstar` (lb), `k` (t). Each
    group has a step size of its own lr and weight decay.

    Source:
        Schaipp et al., MoMo: Momentum Models for Adaptive Learning Rates, arXiv 2305.07583; fabian-sp/MoMo.
    """

    needs_loss = True
    rule = Rule(
        moments_step,
        ELEMENT,
        {"grad_avg": zeros, "grad_avg_sq": nonnegative},
        _adam_scalars,
        Probe(_adam_sums, _adam_rates),
    )
    run_state = _run_state("betas", "")
    names = (Name("momo_adam"),)
    lr: float = hyper(1e-2, "largest step size")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of d, f and c, and of v")
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr")
    lb: float = hyper(0.0, "lower bound of the loss", low=-math.inf)
    divide: bool = hyper(True, "proximal weight decay in place of AdamW's")
    use_fstar: bool = hyper(False, "estimate the bound")

    def decay_for(self, group: dict[str, Any]) -> Decay:
        return Decay.DECOUPLED_AFTER if group["divide"] else Decay.DECOUPLED
