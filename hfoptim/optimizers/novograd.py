"""NovoGrad: momentum of gradients that are normalised tensor by tensor."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import TENSOR, Rule, add_scaled, ema, scalar, zeros
from hfoptim.optimizers.shared.decoupling import DECOUPLED_DECAY, DecouplingInside
from hfoptim.optimizers.shared.moments import moment_rates
from hfoptim.optimizers.shared.peer_flags import TIMM_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    """The weights of the normalised gradient and of the decayed parameter in the momentum, beside the rates."""
    rates = moment_rates(t, group)
    weight = rates["alpha1"] if group["grad_averaging"] else 1.0
    return {
        "alpha2": rates["alpha2"],
        "beta1": group["betas"][0],
        "eps": group["eps"],
        "weight": weight,
        "inside": 0.0 if group["decoupled_decay"] else weight * float(group["weight_decay"]),
    }


@cache
def novograd(amsgrad: bool) -> Rule:
    """The rule, with or without AMSGrad."""

    # Passes over memory, in tensors of the parameter's size:
    #   the gradient's norm: read grad                                          1
    #   update: read grad, param, m; write param, m                             5
    def fn(grad: Any, param: Any, exp_avg: Any, exp_avg_sq: Any, *args: Any) -> tuple[Any, ...]:
        *state, h = args
        squared = grad.square().sum()
        # The first gradient that is not 0 sets the second moment.
        exp_avg_sq = torch.where(exp_avg_sq > 0, ema(exp_avg_sq, squared, h.alpha2), squared)
        largest = [torch.maximum(state[0], exp_avg_sq)] if amsgrad else []
        factor = h.weight / ((largest[0] if amsgrad else exp_avg_sq).sqrt() + h.eps)
        exp_avg = add_scaled(add_scaled(grad * factor, exp_avg, h.beta1), param, h.inside)
        return (exp_avg, exp_avg, exp_avg_sq, *largest)

    fn.__name__ = "novograd"
    state = {"exp_avg": zeros, "exp_avg_sq": scalar}
    return Rule(fn, TENSOR, {**state, "max_exp_avg_sq": scalar} if amsgrad else state, _per_step)


class NvNovoGrad(DecouplingInside):
    """Momentum of gradients divided by their norm: Adam with one second moment per tensor.

    With g the gradient, p the parameter:

        v = beta2 v + (1 - beta2) |g|^2                 (first step: v = |g|^2)
        u = g / (sqrt(v) + eps) + weight_decay p        (with amsgrad the largest v so far)
        m = beta1 m + u, or with grad_averaging beta1 m + (1 - beta1) u
        p = p - lr m                                    (decoupled_decay: - lr weight_decay p, and u without it)

    State: `exp_avg` (m, as large as the parameter), `exp_avg_sq` (v, one number), `max_exp_avg_sq` with amsgrad; a
    state_dict of timm's NvNovoGrad loads.

    Follows timm, which is NVIDIA's code and agrees with jettify's torch_optimizer; both keep v in float32 also for
    float64 parameters, which this does not. pytorch_optimizer takes the first gradient whole with grad_averaging.

    Raises:
        TypeError: a complex parameter.

    Source:
        Ginsburg et al., arXiv 1905.11286; NVIDIA/DeepLearningExamples, Jasper; timm 1.0, `timm.optim.NvNovoGrad`.
    """

    peer_flags = TIMM_DECAY
    names = (
        Name("novograd", aliases=("nvnovograd",)),
        Name("novogradw", "NovoGrad with decoupled weight decay", options={"decoupled_decay": True}),
        Name(
            "novogradc",
            "NovoGrad with decoupled weight decay that falls with the square of lr",
            options={"decoupled_decay": True, "corrected_weight_decay": True},
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.95, 0.98), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "weight decay, through the momentum")
    grad_averaging: bool = hyper(False, "what enters the momentum is multiplied by 1 - beta1")
    amsgrad: bool = hyper(False, "divide by the largest v so far")
    decoupled_decay: bool = DECOUPLED_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return novograd(group["amsgrad"])
