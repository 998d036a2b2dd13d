"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import KW_ONLY

from hfoptim.engine import Decay, Name, hyper
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.momentum import Momentum


class SGD(Momentum, FullyDecoupling):
    """Stochastic gradient descent, with momentum, dampening and Nesterov's form, with torch.optim.SGD's numbers.

    With g the gradient, p the parameter:

        g = g + weight_decay p
        b = momentum b + (1 - dampening) g              (first step: b = g)
        p = p - lr b, or with nesterov p - lr (g + momentum b)

    or, with the gradient as it is, p - ... - lr weight_decay p under `decouple_wd` (SGDW), and
    p - ... - lr / max_lr weight_decay p under `decouple_lr`.

    State: `momentum_buffer` (b) if momentum is not 0. A state_dict of torch.optim.SGD loads. Gradients may be sparse
    where momentum and weight decay are 0: only the rows that they have move.

    Raises:
        ValueError: nesterov without momentum or with dampening.

    Source:
        Sutskever et al., On the importance of initialization and momentum in deep learning,
        https://proceedings.mlr.press/v28/sutskever13.html; torch.optim.SGD; the other weight decays:
        Loshchilov and Hutter, arXiv 1711.05101, and optimi.SGD 0.3.
    """

    decay = Decay.COUPLED
    decoupled_by = "decouple_wd"
    names = (
        Name(
            "sgd",
            "Stochastic gradient descent with Nesterov momentum",
            options={"momentum": 0.9, "nesterov": True},
            aliases=("nesterov",),
        ),
        Name(
            "momentum",
            "Stochastic gradient descent with heavy-ball momentum",
            "https://doi.org/10.1016/0041-5553(64)90137-5",
            {"momentum": 0.9, "nesterov": False},
        ),
        Name(
            "sgdc",
            "SGD with Nesterov momentum and decoupled weight decay that falls with the square of lr",
            "https://arxiv.org/abs/2506.02285",
            {"momentum": 0.9, "nesterov": True, "decouple_wd": True, "corrected_weight_decay": True},
        ),
        Name(
            "csgdc",
            "sgdc with caution",
            "https://arxiv.org/abs/2506.02285",
            {"momentum": 0.9, "nesterov": True, "decouple_wd": True, "corrected_weight_decay": True, "caution": True},
        ),
    )
    peer_state = {"state1": "momentum_buffer"}  # of bitsandbytes
    lr: float = hyper(1e-3, "learning rate")
    momentum: float = hyper(0.0, "decay rate of the buffer")
    dampening: float = hyper(0.0, "share of the gradient kept out of the buffer", most=1.0)
    weight_decay: float = hyper(0.0, "L2 penalty, or the coefficient of the decay that the options below select")
    nesterov: bool = hyper(False, "Nesterov's momentum; needs momentum > 0 and no dampening")
    _: KW_ONLY
    decouple_wd: bool = hyper(False, "decoupled weight decay", in_peers=False)
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
