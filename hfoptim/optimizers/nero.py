"""Nero: the neuronal rotator."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import (
    TENSOR,
    Group,
    Name,
    Rule,
    RuleOptimizer,
    Scalars,
    bias_correction,
    ema,
    hyper,
    nonnegative,
    rule,
    scalar,
    zeros_over,
)
from hfoptim.optimizers.shared.decay_options import OWN_DECAY
from hfoptim.optimizers.shared.matrices import as_matrix


def _per_step(t: int, group: Group) -> Scalars:
    beta, scale = group["beta"], group["bias_scale"]
    correction = 1.0 / math.sqrt(bias_correction(beta, t))
    return {"alpha": 1.0 - beta, "correction": correction, "eps": group["eps"], "bias_scale": scale}


# Passes over memory, in tensors of the parameter's size:
#   norms of rows: read grad, param                                             2
#   mean, then norm of the new rows: read grad, param                           4
#   update: read grad, param; write param                                       3
# Rows that stay in a cache are read once: 3 in all.
@cache
def nero(constraints: bool) -> Rule:
    """The rule of weights, a row for each neuron, with or without the projection on balanced ones."""

    def fn(grad: Any, param: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, Any, Any]:
        exp_avg_sq = ema(exp_avg_sq, grad.square().sum(-1, keepdim=True), h.alpha)
        length = param.norm(2, -1, True)
        turned = grad * (length * h.lr / (exp_avg_sq.sqrt() * h.correction + h.eps))
        if not constraints:
            return turned, h.lr, exp_avg_sq
        new = param - turned
        new = new - new.mean(-1, keepdim=True)
        return param - new / new.norm(2, -1, True).clamp(min=h.eps), h.lr, exp_avg_sq

    fn.__name__ = "nero"
    return Rule(fn, TENSOR, {"exp_avg_sq": zeros_over(-1)}, _per_step, returns_step_size=True, shape=as_matrix)


@rule(TENSOR, per_step=_per_step, exp_avg_sq=nonnegative, scale=scalar)
def nero_bias(grad: Any, param: Any, exp_avg_sq: Any, scale: Any, h: Any) -> tuple[Any, ...]:
    """Of parameters with one number per neuron: steps of the scale that the tensor begins with."""
    exp_avg_sq = ema(exp_avg_sq, grad * grad, h.alpha)
    mean = param.abs().mean()
    scale = torch.where(scale > 0, scale, torch.where(mean > 0, mean, h.bias_scale))
    return grad * scale / (exp_avg_sq.sqrt() * h.correction + h.eps), exp_avg_sq, scale


class Nero(RuleOptimizer):
    """Turns the weight vector of each neuron by an angle of about lr, on the sphere of balanced ones.

    With p the weights of one neuron (a row, a kernel of an output channel), g their gradient, t the step:

        v = beta v + (1 - beta) |g|^2
        p = p - lr |p| / (sqrt(v / (1 - beta^t)) + eps) g
        p = p - mean(p);  p = p / |p|                                   (constraints)

    and for parameters with one number b per neuron, biases and gains:

        v = beta v + (1 - beta) g^2
        b = b - lr sigma / (sqrt(v / (1 - beta^t)) + eps) g

    sigma is the scale of the biases at their initialisation, a constant that the paper leaves open: here the mean
    magnitude of the tensor before its first step, and `bias_scale` where that begins at 0. So is eps. A weight that is
    a row of one number cannot be balanced and counts as a bias; a row of zeros stays. The first step projects weights
    that were not balanced before, also at lr 0. State: `exp_avg_sq` (v), one number per neuron, and for biases `scale`
    (sigma).

    Written from the paper alone. pytorch_optimizer 4.1 takes the same steps from balanced weights; from others it
    projects before the first step, too, and without constraints it has the mean of the first norms in place of |p|.

    Raises:
        TypeError: a complex parameter.

    Source:
        Liu et al., Learning by Turning: Neural Architecture Aware Optimisation, arXiv 2102.07227, algorithm 1.
    """

    names = (Name("nero"),)
    lr: float = hyper(1e-2, "learning rate: the angle of a step")
    beta: float = hyper(0.999, "decay rate of v", below=1.0)
    constraints: bool = hyper(True, "project weights on rows with mean 0 and norm 1")
    eps: float = hyper(1e-8, "added to the root of v; least norm that is divided by", above=0.0)
    _: KW_ONLY
    bias_scale: float = hyper(0.01, "sigma of biases that begin at 0", in_peers=False)
    weight_decay: float = OWN_DECAY

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        rows = param.shape[0] if param.ndim > 1 else param.numel()
        return nero(group["constraints"]) if param.numel() > rows else nero_bias
