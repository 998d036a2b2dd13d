"""SGD-SaI: gradient descent with a step size per tensor, set by the first gradient."""

from __future__ import annotations

from typing import Any

import torch

from hfoptim.engine import TENSOR, Group, Name, RuleOptimizer, Scalars, add_scaled, hyper, rule, scalar, zeros


def _per_step(t: int, group: Group) -> Scalars:
    momentum = group["momentum"]
    # The first step takes the gradient whole.
    return {"momentum": momentum, "weight": 1.0 - momentum if t > 1 else 1.0, "eps": group["eps"]}


def _signal_to_noise(grad: Any, eps: Any) -> Any:
    """A tensor's norm over its deviation; its norm where that is 0.

    The deviation is the unbiased one, with n - 1 for n: the quotient of both is that of sum and mean.
    """
    squares = grad * grad
    total = squares.sum()
    variance = (grad - grad.mean()).square().mean() * (total / (total - squares.mean()))
    norm = total.sqrt()
    return torch.where(variance > 0, norm / (variance.sqrt() + eps), norm)


# Passes over memory, in tensors of the parameter's size:
#   the first gradient's numbers: read grad, twice                          2
#   update: read grad, param, buffer; write param, buffer                   5
@rule(TENSOR, per_step=_per_step, momentum_buffer=zeros, gsnr=scalar)
def sgdsai(grad: Any, param: Any, momentum_buffer: Any, gsnr: Any, h: Any) -> tuple[Any, Any, Any]:
    """Momentum times the signal-to-noise ratio of the first gradient that is not 0."""
    gsnr = torch.where(gsnr > 0, gsnr, _signal_to_noise(grad, h.eps))
    momentum_buffer = add_scaled(momentum_buffer * h.momentum, grad, h.weight)
    return momentum_buffer * gsnr, momentum_buffer, gsnr


class SGDSaI(RuleOptimizer):
    """Momentum with a step size per tensor, set by the signal-to-noise ratio of its first gradient.

    With g the gradient, p the parameter:

        r = |g| / (std(g) + eps)                        (first step only)
        b = momentum b + (1 - momentum) g               (first step: b = g)
        p = p - lr r b - lr weight_decay p

    State: `momentum_buffer` (b), `gsnr` (r, one number). As the first batch sets r for the whole run, it is worth
    looking at; a gradient of zeros leaves it to the next one.

    Follows the author, except where std(g) is 0, as in tensors of one entry: there r = |g|, as in pytorch_optimizer,
    and not |g| / eps. pytorch_optimizer 4.1 takes |g| for every vector, too, and b = (1 - momentum) g at first.

    Raises:
        TypeError: a complex parameter.

    Source:
        Xu et al., arXiv 2412.11768; AnonymousAlethiometer/SGD_SaI.
    """

    rule = sgdsai
    names = (Name("sgdsai"),)
    lr: float = hyper(1e-2, "learning rate")
    momentum: float = hyper(0.9, "decay rate of b", below=1.0)
    eps: float = hyper(1e-8, "added to the deviation")
    weight_decay: float = hyper(1e-2, "decoupled weight decay, per step and unit of lr")
