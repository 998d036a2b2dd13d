"""AdaSmooth."""

from __future__ import annotations

from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, Scalars, State, clone, hyper, nonnegative, rule, zeros
from hfoptim.optimizers.shared.decay_options import FIXED_DECAY, Decoupling, decoupling, fixed_decay


def _per_step(t: int, group: Group) -> Scalars:
    slow, fast = group["betas"]
    return {"least": 1.0 - fast, "span": fast - slow, "eps": group["eps"], **fixed_decay(group)}


# Sums of small numbers over the whole run, kept exact.
_SUM, _LENGTH = State(zeros.init), State(zeros.init, signed=False)


@rule(
    ELEMENT,
    per_step=_per_step,
    exact_weights=True,
    prev_param=clone,
    s=_SUM,
    n=_LENGTH,
    exp_avg_sq=nonnegative,
)
def adasmooth(grad: Any, param: Any, prev_param: Any, s: Any, n: Any, exp_avg_sq: Any, h: Any) -> tuple[Any, ...]:
    """RMSprop whose average is the shorter, the straighter the way of a parameter has been."""
    moved = param - prev_param
    s, n = s + moved, n + abs(moved)
    rate = abs(s) / (n + h.eps) * h.span + h.least
    exp_avg_sq = exp_avg_sq + (grad * grad - exp_avg_sq) * (rate * rate)
    return grad / (exp_avg_sq + h.eps).sqrt(), param, s, n, exp_avg_sq


class AdaSmooth(Decoupling):
    """RMSprop whose second moment forgets the faster, the straighter the way of a parameter has been.

    With g the gradient, p the parameter, p' the one before:

        g = g + weight_decay p
        s = s + (p - p');  n = n + |p - p'|
        c = (beta2 - beta1) |s| / (n + eps) + 1 - beta2
        v = (1 - c^2) v + c^2 g^2
        p = p - lr g / sqrt(v + eps)

    or with `weight_decouple`, g as it is, p - ... - lr weight_decay p (fixed_decay: - weight_decay p), which is part of
    the way. State: `prev_param` (p'), `s`, `n`, `exp_avg_sq` (v).

    Follows pytorch_optimizer, save that its decoupled decay comes before p is looked at. zij looks at p after the
    step, which makes p - p' always 0.

    Source:
        Lu, arXiv 2204.00825; pytorch_optimizer 4.1, `AdaSmooth`.
    """

    rule = adasmooth
    names = (Name("adasmooth"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.5, 0.99), "decay rates of v on a straight way and on one that leads nowhere")
    weight_decay: float = hyper(0.0, "L2 penalty, or decoupled weight decay, per step and unit of lr")
    weight_decouple: bool = decoupling(False)
    fixed_decay: bool = FIXED_DECAY
    eps: float = hyper(1e-6, "added to v and to n", above=0.0, excluded="would divide by 0")
