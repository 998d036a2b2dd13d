"""KATE."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, Scalars, State, add_scaled, hyper, nonnegative, rule
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay


def _per_step(t: int, group: Group) -> Scalars:
    return {"delta": group["delta"], "eps": group["eps"], **fixed_decay(group)}


@rule(ELEMENT, per_step=_per_step, m=State(nonnegative.init, signed=False), b=State(nonnegative.init, signed=False))
def kate(grad: Any, param: Any, m: Any, b: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adagrad without the root, and a numerator that makes up for it."""
    squared = grad * grad
    b = b + squared
    divisor = b + h.eps
    m = add_scaled(m, squared, h.delta) + squared / divisor
    return m.sqrt() * grad / divisor, m, b


class Kate(Decoupling):
    """Adagrad without the root of its sum: steps that do not depend on the scale of the data.

    With g the gradient, p the parameter:

        b = b + g^2
        m = m + delta g^2 + g^2 / (b + eps)
        p = p - lr sqrt(m) g / (b + eps)
        p = p - lr weight_decay p                               (fixed_decay: - weight_decay p)

    where the decay takes the p from before the step, or without `weight_decouple` g = g + weight_decay p comes first.
    State: `m`, `b`, the paper's squared.

    Signature and defaults are pytorch_optimizer's, eps is where the author's code has it: in b, pytorch_optimizer adds
    it again at every step. delta is called eta there and in the paper; the authors' code has 0.9 as its default and
    adds the decay to the gradient.

    Source:
        Choudhury et al., arXiv 2403.02648; nazya/KATE; pytorch_optimizer 4.1, `Kate`.
    """

    rule = kate
    names = (Name("kate"),)
    lr: float = hyper(1e-3, "learning rate")
    delta: float = hyper(0.0, "weight of g^2 in m")
    weight_decay: float = hyper(0.0, "weight decay, per step and unit of lr, or L2 penalty")
    weight_decouple: bool = decoupling(True)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-8, "added to b where it divides", above=0.0, excluded="would divide by 0")
