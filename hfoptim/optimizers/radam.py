"""RAdam: Adam that waits until its second moment can be trusted."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import (
    ELEMENT,
    Decay,
    Group,
    Name,
    Scalars,
    hyper,
    nonnegative,
    rule,
    zeros,
)
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import moment_rates, moments
from hfoptim.optimizers.shared.rectification import rectified


def _per_step(t: int, group: Group) -> Scalars:
    return {**moment_rates(t, group), **rectified(t, {**group, "degenerated_to_sgd": True})}


@rule(ELEMENT, per_step=_per_step, exp_avg=zeros, exp_avg_sq=nonnegative)
def radam(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
    """The first moment, over the root of the second where that is trusted."""
    exp_avg, exp_avg_sq = moments(grad, exp_avg, exp_avg_sq, h)
    return exp_avg / (exp_avg_sq.sqrt() * h.adapted + h.eps), exp_avg, exp_avg_sq


class RAdam(FullyDecoupling):
    """Adam whose first steps do not divide by the second moment, and whose next ones are small: a warm-up of its own.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p                                  (decoupled_weight_decay: - lr weight_decay p at the end,
                                                                 decouple_lr: - lr / max_lr weight_decay p)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        R = 2 / (1 - beta2) - 1,   q = R - 2 t beta2^t / (1 - beta2^t)
        r = sqrt((q - 4) (q - 2) R / ((R - 4) (R - 2) q))
        p = p - lr m / (1 - beta1^t)                                                            while q <= 5
        p = p - lr r sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)                      then

    State: `exp_avg` (m), `exp_avg_sq` (v); a state_dict of torch.optim.RAdam loads. With a beta2 of 0.6 and less q
    never comes above 5.

    Follows torch. optimi and optax add eps to the bias-corrected root of v; the author and pytorch_optimizer take no
    step at all, not even the decay's, while q < 5; timm's RAdamLegacy is the name "radamw".

    Source:
        Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, arXiv 1908.03265; torch.optim.RAdam.
    """

    decay = Decay.COUPLED
    decoupled_by = "decoupled_weight_decay"
    rule = radam
    names = (
        Name("radam"),
        Name(
            "radamw",
            "RAdam with decoupled weight decay",
            options={"decoupled_weight_decay": True},
            aliases=("radam_legacy",),
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    decoupled_weight_decay: bool = hyper(False, "decoupled weight decay")
    _: KW_ONLY
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
