"""Lion."""

from typing import Any

from hfoptim.engine import ELEMENT, Name, ema, hyper, rule, zeros
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import moment_rates


@rule(ELEMENT, per_step=moment_rates, exp_avg=zeros)
def lion(grad: Any, param: Any, exp_avg: Any, h: Any) -> tuple[Any, Any]:
    """The sign of one interpolation of momentum and gradient; another one becomes the momentum."""
    return ema(exp_avg, grad, h.alpha1).sign(), ema(exp_avg, grad, h.alpha2)


class Lion(FullyDecoupling):
    """Sign of an interpolated momentum, found by program search: every entry moves by lr.

    With g the gradient, p the parameter:

        p = p - lr (sign(beta1 m + (1 - beta1) g) + weight_decay p)     (decouple_lr: + weight_decay / max_lr p)
        m = beta2 m + (1 - beta2) g

    Wants 3 to 10 times AdamW's weight decay at a tenth to a third of its lr. State: `exp_avg` (m); a state_dict
    of bitsandbytes' Lion loads.

    Source:
        Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675; google/automl, `lion`;
        `decouple_lr` after optimi.Lion 0.3.
    """

    rule = lion
    peer_state = {"state1": "exp_avg"}  # of bitsandbytes
    names = (
        Name("lion"),
        Name("clion", "Lion with caution", options={"caution": True}),
        Name("lionc", "Lion with decay that falls with the square of lr", options={"corrected_weight_decay": True}),
        Name("clionc", "lionc with caution", options={"caution": True, "corrected_weight_decay": True}),
    )
    lr: float = hyper(1e-4, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "interpolation weights of the update and of the momentum")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
