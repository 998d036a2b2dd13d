"""EXAdam."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, Scalars, bias_correction, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import corrected, moments


def _per_step(t: int, group: Group) -> Scalars:
    left1, left2 = (1.0 - bias_correction(beta, t) for beta in group["betas"])
    return {**corrected(t, group), "left1": left1, "left2": left2, "bare_eps": group["eps"]}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def exadam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """Gradient and first moment over the root of the second, each moment debiased by the other."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    squared = exp_avg * exp_avg
    of_first = exp_avg_sq / (exp_avg_sq + h.bare_eps) * h.left2 + 1.0
    of_second = squared / (squared + h.bare_eps) * h.left1 + 1.0
    update = (exp_avg + grad) * of_first / ((exp_avg_sq * of_second).sqrt() + h.eps)
    return update, exp_avg, exp_avg_sq


class EXAdam(FullyDecoupling):
    """Adam in which each moment corrects the bias of the other, with the gradient added to its momentum.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        d1 = 1 + beta2^t v / (v + eps)
        d2 = 1 + beta1^t m^2 / (m^2 + eps)
        u = (m + g) / (1 - beta1^t) d1 / (sqrt(v / (1 - beta2^t) d2) + eps)
        p = p - lr u - lr weight_decay p                        (decouple_lr: - lr / max_lr weight_decay p)

    State: `exp_avg` (m), `exp_avg_sq` (v).

    Follows the author's code, which pytorch_optimizer agrees with.

    Source:
        Adly, EXAdam: The Power of Adaptive Cross-Moments, arXiv 2412.20302; AhmedMostafa16/EXAdam.
    """

    rule = exadam
    names = (Name("exadam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to v, to m^2, and to the root", above=0.0, excluded="would divide 0 by 0")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
