"""SignSGD and Signum: the sign of the gradient, or of its momentum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Group, Name, Rule, Scalars, ema, hyper, rule, zeros
from hfoptim.optimizers.shared.decay_options import Decoupling, decoupling


def _per_step(t: int, group: Group) -> Scalars:
    return {"alpha": 1.0 - group["momentum"]}


@rule(ELEMENT)
def signsgd(grad: Any, param: Any, h: Any) -> tuple[Any]:
    """The sign of the gradient."""
    return (grad.sign(),)


@rule(ELEMENT, per_step=_per_step, momentum_buffer=zeros)
def signum(grad: Any, param: Any, momentum_buffer: Any, h: Any) -> tuple[Any, Any]:
    """The sign of the average gradient."""
    momentum_buffer = ema(momentum_buffer, grad, h.alpha)
    return momentum_buffer.sign(), momentum_buffer


class SignSGD(Decoupling):
    """Sign of the momentum (Signum), or with momentum=0 of the gradient: every entry moves by lr.

    With g the gradient, p the parameter:

        b = momentum b + (1 - momentum) g
        p = p - lr sign(b) - lr weight_decay p

    or, with weight_decouple=False, g = g + weight_decay p before it and no decay after. State: `momentum_buffer` (b) if
    momentum is not 0. Follows pytorch_optimizer, with its default momentum under both names; the paper's signSGD has
    none.

    Source:
        Bernstein et al., arXiv 1802.04434; pytorch_optimizer 4.1, `SignSGD`.
    """

    names = (Name("signsgd", aliases=("signum",)),)
    lr: float = hyper(1e-3, "learning rate: how far every entry moves")
    momentum: float = hyper(0.9, "decay rate of b; 0 takes the sign of the gradient", below=1.0)
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    weight_decouple: bool = decoupling(True)

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return signum if group["momentum"] != 0 else signsgd
