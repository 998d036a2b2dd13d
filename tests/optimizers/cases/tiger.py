from __future__ import annotations

from typing import Any

import torch
from harness import SMALL
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without


class _Author:
    """The author's equations (bojone/tiger, for TensorFlow), written out for named tensors, with decay everywhere."""

    def __init__(self, params: dict[str, Tensor], lr: float, beta: float = 0.965, weight_decay: float = 0.01) -> None:
        self.params, self.beta, self.weight_decay = params, beta, weight_decay
        self.moments = {name: torch.zeros_like(param) for name, param in params.items()}
        self.param_groups = [{"params": list(params.values()), "lr": lr}]

    @torch.no_grad()
    def step(self) -> None:
        for name, param in self.params.items():
            assert param.grad is not None
            moment = self.beta * self.moments[name] + (1.0 - self.beta) * param.grad
            size: Any = 0.5
            if param.ndim > 1:
                dims = {"dim": 1, "keepdim": True} if "embed" in name else {}
                size = torch.sqrt(torch.mean(param**2, **dims))  # type: ignore[arg-type]
            self.moments[name] = moment
            param.copy_(param - self.param_groups[0]["lr"] * size * (torch.sign(moment) + self.weight_decay * param))


def _author(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return _Author(params, **options)


TIGER = Entry(
    "tiger",
    hfoptim.Tiger,
    variants={
        "scaled": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "scale_parameter": False}, lr=1e-3),
    },
    references=[
        Reference(
            "pytorch_optimizer.Tiger",
            grid(lr=[1e-2], beta=[0.965, 0.5], weight_decay=[0.0, 0.25], scale_parameter=[False]),
            without("scale_parameter", foreach=False),
        ),
        Reference(
            "pytorch_optimizer.Tiger",
            grid(lr=[1e-2], beta=[0.965, 0.5], weight_decay=[0.0, 0.25]),
            make=_author,
            layouts=(*SMALL, "embed.weight"),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.0, "weight_decay": -0.1},
)
