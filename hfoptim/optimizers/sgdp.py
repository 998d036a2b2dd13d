"""SGDP: gradient descent that does not lengthen weights whose length does not matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Rule, Scalars, hyper
from hfoptim.optimizers.shared.momentum import sgd_momentum, sgd_nesterov
from hfoptim.optimizers.shared.projection import Projecting, decay_step


def _per_step(t: int, group: Group) -> Scalars:
    decay = decay_step(group) * group["weight_decay"]
    return {"momentum": group["momentum"], "weight": 1.0 - group["dampening"], "decay": decay}


_RULES = {False: replace(sgd_momentum, per_step=_per_step), True: replace(sgd_nesterov, per_step=_per_step)}


class SGDP(Projecting):
    """Gradient descent without the part of the update that only lengthens weights which a normalisation follows.

    With g the gradient, p the parameter:

        b = momentum b + (1 - dampening) g              (b = 0 at first)
        u = b, or with nesterov g + momentum b
        c = |cos(g, p)|
        w = weight_decay / (1 - momentum)
        if c < delta / sqrt(size of p):  u = u - (p . u) / |p|^2 p,  w = wd_ratio w
        p = p - lr u - lr w p

    in parameters of two and more dimensions: c and the projection first for each row (output channel), where the
    largest c of all rows decides; if that does not hold, for the parameter as one vector. State: `momentum_buffer` (b);
    a state_dict of timm's SGDP loads. `caution` is as in `AdamP`.

    Follows timm and pytorch_optimizer. The author's package without nesterov projects the momentum b itself, which it
    means to copy.

    Raises:
        TypeError: a complex parameter of two or more dimensions.

    Source:
        Heo et al., arXiv 2006.08217; clovaai/AdamP; timm 1.0, `timm.optim.SGDP`.
    """

    names = (
        Name("sgdp", options={"momentum": 0.9, "nesterov": True}),
        Name(
            "csgdp",
            "SGDP with caution on the sphere",
            options={"momentum": 0.9, "nesterov": True, "caution": "momentum"},
        ),
    )
    peer_state = {"momentum": "momentum_buffer"}
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.0, "decay rate of b", below=1.0)
    dampening: float = hyper(0.0, "share of the gradient kept out of b", most=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr / (1 - momentum)")
    nesterov: bool = hyper(False, "Nesterov's momentum")
    eps: float = hyper(1e-8, "added to the norm of weights")
    delta: float = hyper(0.1, "how near to orthogonal a gradient is to be")
    wd_ratio: float = hyper(0.1, "what multiplies the decay of weights whose update is projected")

    def inner_rule(self, group: dict[str, Any]) -> Rule:
        return _RULES[group["nesterov"]]

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # timm's counts no steps, on which nothing depends.
        return {"step": 1.0, **state} if state else state
