from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor, nn

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without


class _Stepped:
    """A LOMO of pytorch_optimizer's, which steps in backward, with the face of an optimizer."""

    def __init__(self, peer: Any, lr: float) -> None:
        self.peer, self.param_groups = peer, [{"lr": lr}]

    def step(self) -> None:
        peer = self.peer
        peer.lr, peer.num_steps = self.param_groups[0]["lr"], peer.num_steps + 1
        if peer.clip_grad_norm is not None:
            norms = [param.grad.norm() for param in peer.model.parameters()]
            peer.clip_coef = (peer.clip_grad_norm / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
        peer.grad_func(0)


def _stepped(who: str, params: dict[str, Tensor], options: Options) -> Any:
    model = nn.Module()
    for name, param in params.items():
        model.register_parameter(name, param)
    peer = peers.load(who)(model, **options)
    peer.num_steps, peer.loss_scale = 0, None
    return _Stepped(peer, options["lr"])


_CLIPPED = [{"clip_grad_value": 1.0}, {"clip_grad_norm": 2.0}, {"clip_grad_value": 1.0, "clip_grad_norm": 2.0}]
# float32 inside, 1e-6 in the norm, and AdaLOMO takes no more than two dimensions.
_FEW = {"make": _stepped, "dtype": torch.float32, "tolerance": 2e-5, "layouts": ("vector", "matrix", "gaps")}

LOMO = Entry(
    "lomo",
    hfoptim.Lomo,
    variants={
        "clipped": Variant({"clip_grad_norm": 2.0, "clip_grad_value": 1.0, "weight_decay": 0.1}, alone=False),
    },
    references=[
        Reference(
            "optimi.SGD",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25]),
            without(decouple_wd=True, momentum=0.0, foreach=False, triton=False),
        ),
        Reference("pytorch_optimizer.LOMO", [{"lr": 1e-2, **clip} for clip in _CLIPPED], **_FEW),
    ],
    numbers={"lr": -1e-3, "clip_grad_norm": -1.0, "clip_grad_value": -1.0, "weight_decay": -0.1},
)


def _eps(options: Options) -> Options:
    eps1, eps2 = options.get("eps", (1e-30, 1e-3))
    return {name: value for name, value in options.items() if name != "eps"} | {"eps1": eps1, "eps2": eps2}


ADALOMO = Entry(
    "adalomo",
    hfoptim.AdaLomo,
    variants={
        "clipped": Variant(
            {"clip_grad_norm": 2.0, "clip_grad_value": 1.0, "weight_decay": 0.1}, complex=False, alone=False
        ),
        "plain": Variant({}, complex=False),
    },
    references=[
        Reference(
            "transformers.Adafactor",
            [
                {"lr": 1e-2, "weight_decay": 0.1},
                {"lr": 1e-2, "clip_threshold": 0.5, "decay_rate": -0.3, "eps": (1e-3, 0.5)},
            ],
            lambda options: {**options, "relative_step": False},
            layouts=("scalar", "vector", "matrix", "conv", "transposed", "gaps"),
        ),
        Reference(
            "pytorch_optimizer.AdaLOMO", [{"lr": 1e-2, "weight_decay": 0.1, **clip} for clip in _CLIPPED], _eps, **_FEW
        ),
    ],
    numbers={
        "lr": -1e-3,
        "clip_threshold": -1.0,
        "decay_rate": 0.5,
        "clip_grad_norm": -1.0,
        "clip_grad_value": -1.0,
        "weight_decay": -0.1,
    },
)
