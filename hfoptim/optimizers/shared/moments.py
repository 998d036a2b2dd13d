"""Adam's two moments: their rates, bias corrections and step, for rules of its kind."""

from __future__ import annotations

import math
from typing import Any

import torch

from hfoptim.engine import Group, Scalars, State, bias_correction, ema, nonnegative, zeros


def moment_rates(t: int, group: Group) -> Scalars:
    """`alpha1`, `alpha2`: the weights of the new gradient in both moving averages."""
    beta1, beta2 = group["betas"]
    return {"alpha1": 1.0 - beta1, "alpha2": 1.0 - beta2}


def debiased_rates(t: int, group: Group) -> Scalars:
    """`alpha1`, `alpha2` with which both averages are what bias corrections would make of them, from the first step."""
    beta1, beta2 = group["betas"]
    return {name: (1.0 - beta) / bias_correction(beta, t) for name, beta in (("alpha1", beta1), ("alpha2", beta2))}


def corrected(t: int, group: Group) -> Scalars:
    """Both moments divided by their bias correction; eps is added to the corrected root, as in the paper's algorithm.

    m / c1 / (sqrt(v / c2) + eps)  =  (sqrt(c2) / c1) * m / (sqrt(v) + eps * sqrt(c2))
    """
    beta1, beta2 = group["betas"]
    root = math.sqrt(bias_correction(beta2, t))
    lr = float(group["lr"]) * root / bias_correction(beta1, t)
    return {**moment_rates(t, group), "eps": group["eps"] * root, "lr": lr}


def one_ahead(t: int, group: Group) -> Scalars:
    """`corrected`, with the gradient once more in the first moment by the share it entered (arXiv 1910.05446)."""
    scalars = corrected(t, group)
    return {**scalars, "ahead": scalars["alpha1"]}


def mixed(t: int, group: Group, of_grad: float, of_average: float) -> Scalars:
    """The second moment corrected; in place of the first, gradient and average with weights of their own.

    (a g + b m) / (sqrt(v / c2) + eps)  =  (a + b) sqrt(c2) (m + a / (a + b) (g - m)) / (sqrt(v) + eps sqrt(c2))
    """
    scale = (of_grad + of_average) * math.sqrt(bias_correction(group["betas"][1], t))
    ahead = of_grad / (of_grad + of_average)
    return {**corrected(t, group), "ahead": ahead, "lr": float(group["lr"]) * scale}


def folded(t: int, group: Group) -> Scalars:
    """The bias correction folded into the step size; eps is added to the plain root (the paper's section 2, end)."""
    lr = float(group["lr"])
    if group.get("correct_bias", True):
        beta1, beta2 = group["betas"]
        lr *= math.sqrt(bias_correction(beta2, t)) / bias_correction(beta1, t)
    return {**moment_rates(t, group), "eps": group["eps"], "lr": lr}


def moments(grad: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any]:
    """Both moving averages with the new gradient in them."""
    return ema(exp_avg, grad, h.alpha1), ema(exp_avg_sq, grad * grad, h.alpha2)


def adam_state(amsgrad: bool) -> dict[str, State]:
    """Both moments, and with AMSGrad the largest second moment so far."""
    return {"exp_avg": zeros, "exp_avg_sq": nonnegative, **({"max_exp_avg_sq": nonnegative} if amsgrad else {})}


def with_largest(second: Any, state: list[Any]) -> tuple[Any, list[Any]]:
    """What to divide by under AMSGrad (openreview.net/forum?id=ryQu7f-RZ), and the largest second moment to be kept.

    Args:
        second: the new second moment.
        state: the largest one so far, or nothing.
    """
    if not state:
        return second, []
    largest = torch.maximum(state[0], second)
    return largest, [largest]


def normed(exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
    """The first moment over the root of the second: `(update, *largest)`.

    Args:
        exp_avg, exp_avg_sq: both moments. The bias corrections are in `h.eps` and `h.lr`.
        *args: `h`, and for AMSGrad the largest second moment so far before it.
    """
    *largest, h = args
    divisor, largest = with_largest(exp_avg_sq, largest)
    return (exp_avg / (divisor.sqrt() + h.eps), *largest)


def moments_step(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
    """Adam's update from exponential moving averages of the gradient and its square (arXiv 1412.6980), or AMSGrad's."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, args[-1])
    update, *largest = normed(exp_avg, exp_avg_sq, *args)
    return (update, exp_avg, exp_avg_sq, *largest)


def nesterov_moments_step(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's update with the gradient taken into the first moment once more, by the share `h.ahead`."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    (update,) = normed(ema(exp_avg, grad, h.ahead), exp_avg_sq, h)
    return update, exp_avg, exp_avg_sq
