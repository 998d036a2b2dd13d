"""MARS: steps from gradients corrected by their change, for three kinds of step."""

from __future__ import annotations

from dataclasses import KW_ONLY
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import (
    ELEMENT,
    MATRIX,
    TENSOR,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    ema,
    hyper,
    zeros,
)
from hfoptim.optimizers.shared.matrices import as_matrix
from hfoptim.optimizers.shared.moments import adam_state, corrected, moment_rates, moments_step
from hfoptim.optimizers.shared.newton_schulz import NewtonSchulz, iterations


def _correction(t: int, group: Group) -> float:
    """The weight of the gradient's change: at the first step there is none."""
    beta1 = group["betas"][0]
    return group["gamma"] * beta1 / (1.0 - beta1) if t > 1 else 0.0


def _adamw_scalars(t: int, group: Group) -> Scalars:
    return {**corrected(t, group), "correction": _correction(t, group)}


def _plain_scalars(t: int, group: Group) -> Scalars:
    return {**moment_rates(t, group), "correction": _correction(t, group), "eps": group["eps"]}


def _vector_scalars(t: int, group: Group) -> Scalars:
    """Of AdamW, for what MARS leaves to it: another learning rate, and perhaps other betas."""
    betas, lr = group["betas_1d"] or group["betas"], float(group["lr"]) * group["lr_1d_factor"]
    return {**corrected(t, {**group, "betas": betas, "lr": lr}), "decay": lr * group["weight_decay"]}


@cache
def mars(mars_type: str, amsgrad: bool) -> Rule:
    """The rule with one kind of step: "adamw", with AMSGrad or without, "lion" or "shampoo"."""
    newton_schulz = NewtonSchulz(iterations("original", 5), None, 1.0)

    def fn(grad: Any, param: Any, exp_avg: Any, last_grad: Any, *args: Any) -> tuple[Any, ...]:
        h = args[-1]
        reduced = grad + (grad - last_grad) * h.correction
        # Matrices come in batches.
        norm = reduced.norm(dim=(-2, -1), keepdim=True) if mars_type == "shampoo" else reduced.norm()
        reduced = reduced / norm.clamp(min=1.0)
        if mars_type == "adamw":
            update, exp_avg, *second = moments_step(reduced, param, exp_avg, *args)
            return update, exp_avg, grad, *second
        exp_avg = ema(exp_avg, reduced, h.alpha1)
        if mars_type == "lion":
            return exp_avg.sign(), exp_avg, grad
        rows, columns = exp_avg.shape[-2:]
        factor = max(1.0, rows / columns) ** 0.5
        return newton_schulz(exp_avg / h.alpha1, h.eps) * factor, exp_avg, grad

    fn.__name__ = f"mars_{mars_type}"
    first, *second = adam_state(amsgrad).items() if mars_type == "adamw" else [("exp_avg", zeros)]
    return Rule(
        fn,
        MATRIX if mars_type == "shampoo" else TENSOR,
        dict([first, ("last_grad", zeros), *second]),
        _adamw_scalars if second else _plain_scalars,
        shape=as_matrix if mars_type == "shampoo" else None,
    )


# Of what MARS leaves to AdamW, by whether that is AMSGrad.
_VECTORS = {amsgrad: Rule(moments_step, ELEMENT, adam_state(amsgrad), _vector_scalars) for amsgrad in (False, True)}


class Mars(RuleOptimizer):
    """Variance reduction: gradients corrected by how far they have changed, then a step of AdamW, Lion or Shampoo.

    With g the gradient, g' the one before (at the first step g), p the parameter, t the step:

        c = g + gamma beta1 / (1 - beta1) (g - g');  c = c / max(1, |c|)
        m = beta1 m + (1 - beta1) c
        v = beta2 v + (1 - beta2) c^2                                                   ("adamw")
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)                         ("adamw")
        u = sign(m)                                                                     ("lion")
        u = sqrt(max(1, rows / columns)) NewtonSchulz(m / (1 - beta1))                  ("shampoo")
        p = p - lr (u + weight_decay p)

    Parameters with less than two dimensions step by AdamW with g itself, `betas_1d`, and lr_1d_factor lr in place of
    lr; with `optimize_1d` they step as the others ("shampoo": as "adamw"). |c| is the norm of one tensor. Kernels of
    convolutions are matrices to "shampoo", with all behind the first dimension as columns.

    State: `exp_avg` (m), `last_grad` (g'), `exp_avg_sq` (v, with "adamw"); without correction `exp_avg`, `exp_avg_sq`.
    With `amsgrad` also the largest v so far, `max_exp_avg_sq`.

    This is the form that takes g' from the batch before ("approximate"); the exact one runs backward twice. Follows
    timm, which has the paper's first step. The author's code and pytorch_optimizer 4.1 have g' = 0 there; the author
    applies it to exactly two dimensions, and has other betas and a weight decay of its own for vectors. "shampoo" is
    the author's; timm has none. Where `caution` meets "lion", the mask keeps its mean here, as in the paper; timm takes
    the sign of what it masked.

    Raises:
        TypeError: a complex parameter.

    Source:
        Yuan et al., arXiv 2411.10438; AGI-Arena/MARS; timm 1.0, `timm.optim.Mars`.
    """

    names = (
        Name("mars"),
        Name("cmars", "MARS with caution", options={"caution": True}),
    )
    lr: float = hyper(3e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v; least norm of what Newton-Schulz begins with")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    gamma: float = hyper(0.025, "strength of the correction")
    mars_type: str = hyper("adamw", "kind of step", choices=("adamw", "lion", "shampoo"))
    optimize_1d: bool = hyper(False, "vectors are corrected, too")
    lr_1d_factor: float = hyper(1.0, "factor of lr for vectors")
    betas_1d: tuple[float, float] | None = hyper(None, "AdamW's decay rates for vectors; None is betas")
    _: KW_ONLY
    amsgrad: bool = hyper(False, "divide by the largest v so far, wherever there is a v", in_peers=False)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        kind, amsgrad = group["mars_type"], group["amsgrad"]
        if param.ndim >= 2:
            return mars(kind, amsgrad)
        return mars("adamw" if kind == "shampoo" else kind, amsgrad) if group["optimize_1d"] else _VECTORS[amsgrad]
