"""AdamG: Adam that finds its step size from the sizes of its gradients."""

from __future__ import annotations

import math
from typing import Any

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.engine.rule import ELEMENT, ema, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay
from hfoptim.optimizers.shared.moments import corrected, normed


def _per_step(t: int, group: Group) -> Scalars:
    beta1, beta2, beta3 = group["betas"]
    lr = min(float(group["lr"]), 1.0 / math.sqrt(t))
    # Decoupled decay goes by the lr given, not by the limit.
    scalars = corrected(t, {**group, "lr": lr, "betas": (beta1, beta2)})
    return {**scalars, **fixed_decay(group), "alpha3": 1.0 - beta3, "p": group["p"], "q": group["q"]}


@rule(ELEMENT, per_step=_per_step, m=zeros, v=nonnegative, r=nonnegative)
def adamg(grad: Any, param: Any, m: Any, v: Any, r: Any, h: Any) -> tuple[Any, Any, Any, Any]:
    """Adam's update from gradients multiplied by an average of a power of their second moment."""
    v = ema(v, grad * grad, h.alpha2)
    r = ema(r, v**h.q * h.p, h.alpha3)
    m = ema(m, r * grad, h.alpha1)
    (update,) = normed(m, v, h)
    return update, m, v, r


class AdamG(Decoupling):
    """Adam with step sizes found from the second moment: lr is a limit, and 1 lets it alone.

    With g the gradient, P the parameter, t the step:

        v = beta2 v + (1 - beta2) g^2
        r = beta3 r + (1 - beta3) p v^q
        m = beta1 m + (1 - beta1) r g
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        P = P - min(lr, 1 / sqrt(t)) u

    with g = g + weight_decay P before it, or P = P - ... - lr weight_decay P under `weight_decouple`, and
    P = P - ... - weight_decay P under `fixed_decay` too. State: `m`, `v`, `r`.

    Source:
        Pang et al., Towards Stability of Parameter-free Optimization, arXiv 2405.04376; pytorch_optimizer 4.1.
    """

    rule = adamg
    names = (Name("adamg"),)
    lr: float = hyper(1.0, "largest step size")
    betas: tuple[float, float, float] = hyper((0.95, 0.999, 0.95), "decay rates of m, v and r")
    p: float = hyper(0.2, "factor of v^q", above=0.0, excluded="would take no step")
    q: float = hyper(0.24, "exponent of v", above=0.0, excluded="would let gradients of any size pass")
    weight_decay: float = hyper(0.0, "L2 penalty, or the coefficient of the decay that the options below select")
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-8, "added to the bias-corrected root of v")
