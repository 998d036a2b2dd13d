"""SRMM: stochastic regularized majorization-minimization with proximal linear surrogates."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from hfoptim.engine import ELEMENT, Group, Name, RuleOptimizer, Scalars, State, ema, hyper, rule, zeros
from hfoptim.optimizers.shared.decay_options import OWN_DECAY


def _per_step(t: int, group: Group) -> Scalars:
    length = group["memory_length"]
    weight = ((t if length is None else t % length) + 1.0) ** -group["beta"]
    return {"weight": weight, "moves": 1.0 - group["proximal"] * float(group["lr"])}


# The average of parameters is kept exactly: it is where the parameter goes.
@rule(
    ELEMENT,
    per_step=_per_step,
    returns_step_size=True,
    exact_weights=True,
    mov_avg_grad=zeros,
    mov_avg_param=State(zeros.init),
)
def srmm(grad: Any, param: Any, mov_avg_grad: Any, mov_avg_param: Any, h: Any) -> tuple[Any, ...]:
    """To the average of parameters, and on along the average of gradients."""
    mov_avg_grad = ema(mov_avg_grad, grad, h.weight)
    mov_avg_param = ema(mov_avg_param, param, h.weight)
    return (param - mov_avg_param) * h.moves + mov_avg_grad * h.lr, h.lr, mov_avg_grad, mov_avg_param


class SRMM(RuleOptimizer):
    """Steps along an average of gradients, from an average of parameters: a recursive average of surrogates, minimised.

    With g the gradient, p the parameter, t the step, q = lr proximal:

        w = (t mod memory_length + 1)^-beta                     (memory_length None: (t + 1)^-beta)
        m = (1 - w) m + w g
        a = (1 - w) a + w p
        p = p - (1 - q) (p - a) - lr m

    Both averages begin at 0, as the author's: with w = 2^-beta at the first step p shrinks to that share of itself,
    also at lr 0. State: `mov_avg_grad` (m), `mov_avg_param` (a).

    The author's lr is 1 / (ilr + pr), his pr is `proximal` (lambda in the paper), his L `memory_length`. His code has
    `t+1 % L`, which Python reads as t + 1 for every L, so that nothing is refreshed: that is memory_length=None here.
    pytorch_optimizer 4.1 differs: what it keeps as a has the step in it, and its memory_length=None makes w = 1, plain
    gradient descent.

    Source:
        Lyu, Stochastic regularized majorization-minimization with weakly convex and multi-convex surrogates,
        arXiv 2201.01652; HanbaekLyu/SRMM.
    """

    rule = srmm
    names = (Name("srmm"),)
    lr: float = hyper(1e-2, "learning rate")
    beta: float = hyper(0.5, "how fast the weight of what is new falls", most=1.0)
    memory_length: int | None = hyper(100, "steps after which the averages begin anew; None: never", low=1)
    _: KW_ONLY
    proximal: float = hyper(0.0, "proximal regularisation: how far the parameter itself is held to", in_peers=False)
    weight_decay: float = OWN_DECAY
