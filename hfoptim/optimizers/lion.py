"""Lion."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from hfoptim.engine import ELEMENT, EngineOptions, ema, rule, zeros
from hfoptim.optimizers.adam import moment_rates
from hfoptim.optimizers.decoupling import FullyDecoupling


@rule(ELEMENT, per_step=moment_rates, exp_avg=zeros)
def lion(grad: Any, param: Any, exp_avg: Any, h: Any) -> tuple[Any, Any]:
    """The sign of one interpolation of momentum and gradient; another one becomes the momentum."""
    return ema(exp_avg, grad, h.alpha1).sign(), ema(exp_avg, grad, h.alpha2)


class Lion(FullyDecoupling):
    """Sign of an interpolated momentum, found by program search: every entry moves by lr.

    With g the gradient, p the parameter:

        p = p - lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)     (decouple_lr: + weight_decay / max_lr p)
        m = beta2 m + (1 - beta2) g

    Wants 3 to 10 times AdamW's weight decay at a tenth to a third of its lr. State: `exp_avg` (m).

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr (default 1e-4): learning rate.
        betas (0.9, 0.99): interpolation weights of the update and of the momentum, each in [0, 1).
        weight_decay (0.0): decoupled weight decay, per step and unit of lr.
        decouple_lr (False): fully decoupled weight decay; wants a much smaller `weight_decay`, since lr no longer
            multiplies it.
        max_lr (None): peak learning rate of the schedule, for `decouple_lr`; None takes the `lr` given here.
        **options: `maximize`, `foreach`, `fused`, `caution`, `kahan_sum`, see `RuleOptimizer`.

    Raises:
        ValueError: a hyper-parameter out of range, or no parameters.
        TypeError: a hyper-parameter of the wrong type, or an unknown option.

    Source:
        Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675; google/automl, `lion`;
        `decouple_lr` after optimi.Lion 0.3.
    """

    rule = lion

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decouple_lr: bool = False,
        max_lr: float | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "decouple_lr": decouple_lr,
            "max_lr": max_lr,
        }
        super().__init__(params, defaults, **options)
