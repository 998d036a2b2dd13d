"""LARS and LARC: gradient descent with a step size per tensor."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from torch import Tensor

from hfoptim.engine import TENSOR, Decay, Group, Name, Rule, Scalars, add_scaled, hyper
from hfoptim.optimizers.shared.momentum import Momentum
from hfoptim.optimizers.shared.trust_ratio import adapts, unless_zero


@cache
def lars(descent: Rule, trust_clip: bool) -> Rule:
    """The rule that hands a decayed and scaled gradient to another one.

    Args:
        descent: the other rule.
        trust_clip: step sizes of the learning rate at most (LARC).
    """

    def per_step(t: int, group: Group) -> Scalars:
        lr = float(group["lr"])
        own = {name: float(group[name]) for name in ("trust_coeff", "eps")}
        return {**descent.per_step(t, group), **own, "inverse_lr": 1.0 / lr if lr else math.inf}

    # Passes over memory, in tensors of the parameter's size:
    #   both norms: read grad, param                                            2
    #   update: read grad, param, buffer; write param, buffer                   5, without momentum 3
    def trust_ratio(grad: Any, param: Any, h: Any) -> Any:
        weight_norm, grad_norm = param.norm(), grad.norm()
        ratio = weight_norm * h.trust_coeff / (weight_norm * h.weight_decay + grad_norm + h.eps)
        ratio = unless_zero(ratio, weight_norm, grad_norm, 1.0)
        return (ratio * h.inverse_lr).clamp(max=1.0) if trust_clip else ratio

    def fn(grad: Any, param: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        decayed = add_scaled(grad, param, h.weight_decay)
        result: tuple[Any, ...] = descent.fn(decayed * trust_ratio(grad, param, h), param, *state, h)
        return result

    def report(grad: Any, param: Any, *args: Any) -> dict[str, Any]:
        return {"trust_ratio": trust_ratio(grad, param, args[-1])}

    fn.__name__ = "lars"
    return Rule(fn, TENSOR, descent.state, per_step, report=report)


class Lars(Momentum):
    """Gradient descent whose step is a share of the parameter's norm, tensor by tensor: for large batches.

    With g the gradient, p the parameter:

        r = trust_coeff |p| / (|g| + weight_decay |p| + eps)
        r = min(r / lr, 1)                              (trust_clip: LARC)
        b = momentum b + (1 - dampening) r (g + weight_decay p)         (first step: b = r (g + weight_decay p))
        p = p - lr b, or with nesterov p - lr (r (g + weight_decay p) + momentum b)

    The trust ratio r is 1 (with trust_clip min(1 / lr, 1)) where one of the norms is 0; parameters without weight decay
    take plain steps, unless `always_adapt`. State: `momentum_buffer` (b) if momentum is not 0; a state_dict of timm's
    Lars loads.

    Follows timm, which jettify's torch_optimizer agrees with. pytorch_optimizer adapts tensors of two and more
    dimensions, always, and has no eps; optax divides by |g + weight_decay p| and has lr inside the buffer; apex' LARC
    adapts without weight decay, too.

    Raises:
        ValueError: nesterov without momentum or with dampening.
        TypeError: a complex parameter that is adapted.

    Source:
        You et al., arXiv 1708.03888; timm 1.0, `timm.optim.Lars`.
    """

    decay = Decay.INSIDE
    other_in_bitsandbytes = (
        "SGD with steps of lr max_unorm |p| at most, where LARS scales gradients by trust_coeff |p| / |g| before they "
        "enter the momentum"
    )
    names = (
        Name("lars", options={"momentum": 0.9}),
        Name("larc", "LARS with step sizes of lr at most", options={"momentum": 0.9, "trust_clip": True}),
        Name("nlars", "LARS with Nesterov momentum", options={"momentum": 0.9, "nesterov": True}),
        Name("nlarc", "LARC with Nesterov momentum", options={"momentum": 0.9, "nesterov": True, "trust_clip": True}),
    )
    lr: float = hyper(1.0, "learning rate")
    momentum: float = hyper(0.0, "decay rate of the buffer")
    dampening: float = hyper(0.0, "share of the gradient kept out of the buffer", most=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty")
    nesterov: bool = hyper(False, "Nesterov's momentum; needs momentum > 0 and no dampening")
    trust_coeff: float = hyper(
        0.001, "norm of a step at lr 1, as a share of the parameter's", above=0.0, excluded="would stop every step"
    )
    eps: float = hyper(1e-8, "added to the divisor of the trust ratio")
    trust_clip: bool = hyper(False, "no tensor's step size is above lr (LARC)")
    always_adapt: bool = hyper(False, "a trust ratio for parameters without weight decay, too")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        descent = super().rule_for(param, group)
        return lars(descent, group["trust_clip"]) if adapts(group) else descent
