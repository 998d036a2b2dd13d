"""FAdam: Adam as natural gradient descent."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import TENSOR, Decay, Group, Name, Rule, RuleOptimizer, Scalars, ema, hyper, nonnegative, zeros
from hfoptim.optimizers.shared.moments import debiased_rates


def _per_step(t: int, group: Group) -> Scalars:
    p, eps = group["p"], group["eps"]
    return {
        "alpha1": 1.0 - group["betas"][0],
        "alpha2": debiased_rates(t, group)["alpha2"],
        "p": p,
        "twice_p": 2.0 * p,
        "eps": eps,
        "power_of_eps": eps ** (2.0 * p),
        "eps_2": group["eps_2"],
        "clip": group["clip"],
    }


def _clipped(x: Any, most: Any) -> Any:
    return x / (x.square().mean().sqrt() / most).clamp(min=1.0)


# Passes over memory, in tensors of the parameter's size:
#   the gradient's mean square: read grad                                       1
#   both other means: read grad, param, fim                                     3
#   update: read grad, param, m, fim; write param, m, fim                       7
@cache
def fadam(root: bool) -> Rule:
    """Momentum of the clipped natural gradient, and decay that is a natural gradient, too; `root` where p is 1/2."""

    def fn(grad: Any, param: Any, momentum: Any, fim: Any, h: Any) -> tuple[Any, Any, Any]:
        fim = ema(fim, grad * grad, h.alpha2)
        eps = grad.square().mean().sqrt() * h.eps_2
        added = torch.where(eps > 0, torch.where(eps < h.eps, eps**h.twice_p, h.power_of_eps), h.power_of_eps)
        base = (fim.sqrt() if root else fim**h.p) + added
        momentum = ema(momentum, _clipped(grad / base, h.clip), h.alpha1)
        return momentum + _clipped(param / base, h.clip) * h.weight_decay, momentum, fim

    fn.__name__ = "fadam"
    return Rule(fn, TENSOR, {"momentum": zeros, "fim": nonnegative}, _per_step)


class FAdam(RuleOptimizer):
    """Adam as natural gradient descent, with a diagonal empirical Fisher matrix: momentum of clipped natural gradients.

    With g the gradient, P the parameter, t the step, b2 the decay rate beta2 (1 - beta2^(t-1)) / (1 - beta2^t), and
    c(y) = y / max(1, rms(y) / clip):

        f = b2 f + (1 - b2) g^2
        d = f^p + min(eps, eps_2 rms(g))^(2 p)
        m = beta1 m + (1 - beta1) c(g / d)
        P = P - lr (m + weight_decay c(P / d))

    State: `momentum` (m), `fim` (f, the diagonal of the Fisher matrix).

    Follows pytorch_optimizer 4.1. lessw2020's FAdam_PyTorch has eps max(1, rms(g)) for what is added to f^p, and
    multiplies by `clip` what it does not clip.

    Raises:
        TypeError: a complex parameter.

    Source:
        Hwang, FAdam: Adam is a natural gradient optimizer using diagonal empirical Fisher information,
        arXiv 2405.12807; pytorch_optimizer 4.1.
    """

    decay = Decay.INSIDE
    names = (Name("fadam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and f")
    weight_decay: float = hyper(0.1, "weight decay by the natural gradient, per step and unit of lr")
    clip: float = hyper(1.0, "largest root mean square of a natural gradient", above=0.0, excluded="would erase it")
    p: float = hyper(0.5, "exponent of f; 1/2 is Adam's", above=0.0, excluded="would not look at f")
    eps: float = hyper(1e-8, "largest number whose power is added", above=0.0, excluded="would divide 0 by 0")
    eps_2: float = hyper(0.01, "the same as a share of the gradient's root mean square")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return fadam(group["p"] == 0.5)
