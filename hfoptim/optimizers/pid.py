"""PID: descent by the gradient, its sum and its change."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Group, Name, Rule, RuleOptimizer, Scalars, add_scaled, hyper, rule, zeros
from hfoptim.optimizers.shared.momentum import sgd


def _per_step(t: int, group: Group) -> Scalars:
    momentum = group["momentum"]
    return {
        "momentum": momentum,
        "weight": 1.0 - group["dampening"],
        # At the first step there is no gradient before, so no difference.
        "change": 1.0 - momentum if t > 1 else 0.0,
        "integral": group["integral"],
        "derivative": group["derivative"],
    }


@rule(ELEMENT, per_step=_per_step, grad_buffer=zeros, i_buffer=zeros, d_buffer=zeros)
def pid(grad: Any, param: Any, grad_buffer: Any, i_buffer: Any, d_buffer: Any, h: Any) -> tuple[Any, ...]:
    """The gradient, its damped sum, and the average of its change."""
    i_buffer = add_scaled(i_buffer * h.momentum, grad, h.weight)
    d_buffer = add_scaled(d_buffer * h.momentum, grad - grad_buffer, h.change)
    update = add_scaled(add_scaled(grad, i_buffer, h.integral), d_buffer, h.derivative)
    return update, grad, i_buffer, d_buffer


class PID(RuleOptimizer):
    """Momentum with a term for the change of the gradient, as a PID controller has it.

    With g the gradient, g' the one before (at the first step g), p the parameter:

        g = g + weight_decay p
        i = momentum i + (1 - dampening) g
        d = momentum d + (1 - momentum) (g - g')
        p = p - lr (g + integral i + derivative d)

    Without momentum, which is the class's default, it is plain gradient descent; the registry's name "pid" has 0.9.
    State: `grad_buffer` (g), `i_buffer` (i), `d_buffer` (d).

    Follows pytorch_optimizer, which has the paper's equations. The author's file and jettify's take the first gradient
    into i undamped, and at the second step, by mistake, 0 for g'.

    Source:
        An et al., A PID controller approach for stochastic optimization of deep networks,
        https://openaccess.thecvf.com/content_cvpr_2018/html/An_A_PID_Controller_CVPR_2018_paper.html;
        pytorch_optimizer 4.1, `PID`.
    """

    decay = Decay.COUPLED
    names = (Name("pid", options={"momentum": 0.9}),)
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.0, "decay rate of i and d", below=1.0)
    dampening: float = hyper(0.0, "share of the gradient kept out of i", most=1.0)
    derivative: float = hyper(10.0, "factor of d")
    integral: float = hyper(5.0, "factor of i")
    weight_decay: float = hyper(0.0, "L2 penalty")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return pid if group["momentum"] != 0 else sgd
