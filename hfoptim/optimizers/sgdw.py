"""Gradient descent with momentum and decoupled weight decay."""

from __future__ import annotations

from hfoptim.engine import Decay, Name, hyper
from hfoptim.optimizers.shared.momentum import Momentum
from hfoptim.optimizers.shared.peer_flags import any_value


class SGDW(Momentum):
    """Gradient descent with momentum and decoupled weight decay, with timm's signature and numbers.

    With g the gradient, p the parameter:

        b = momentum b + (1 - dampening) g              (first step: b = g)
        p = p - lr b - lr weight_decay p, or with nesterov p - lr (g + momentum b) - lr weight_decay p

    State: `momentum_buffer` (b) if momentum is not 0; a state_dict of timm's SGDW loads. `SGD(decouple_wd=True)` takes
    the same steps. jettify's torch_optimizer subtracts lr weight_decay from every entry instead.

    Raises:
        ValueError: nesterov without momentum or with dampening.

    Source:
        Loshchilov and Hutter, arXiv 1711.05101; timm 1.0, `timm.optim.SGDW`.
    """

    decay = Decay.DECOUPLED
    names = (
        Name(
            "sgdw",
            "Gradient descent with Nesterov momentum and decoupled weight decay",
            options={"momentum": 0.9, "nesterov": True},
            aliases=("nesterovw",),
        ),
        Name("csgdw", "SGDW with caution", options={"momentum": 0.9, "nesterov": True, "caution": True}),
    )
    peer_flags = {"max_lr_snapshot": any_value}
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.0, "decay rate of the buffer")
    dampening: float = hyper(0.0, "share of the gradient kept out of the buffer", most=1.0)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    nesterov: bool = hyper(False, "Nesterov's momentum; needs momentum > 0 and no dampening")
