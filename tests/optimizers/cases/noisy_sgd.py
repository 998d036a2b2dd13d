from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from hfoptim.engine import storage


class _Annealed(torch.optim.SGD):
    """torch's SGD of gradients with the noise that ours has added to them."""

    def __init__(self, params: list[Tensor], eta: float = 0.01, gamma: float = 0.55, **options: Any) -> None:
        super().__init__(params, **options)
        self.eta, self.gamma, self.t = eta, gamma, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.t += 1
        sigma = math.sqrt(self.eta / self.t**self.gamma)
        for place, param in enumerate(self.param_groups[0]["params"]):
            noise = storage.normal(param.shape, storage.drawing_seed(self.t, place), param.dtype, param.device)
            param.grad += (-sigma if self.param_groups[0]["maximize"] else sigma) * noise
        return super().step(closure)


def _noisy(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return _Annealed(list(params.values()), **options)


NOISY_SGD = Entry(
    "noisy_sgd",
    hfoptim.NoisySGD,
    variants={"decay": Variant({"weight_decay": 0.1}, alone=False, compiled=True)},
    references=[
        Reference("torch.optim.SGD", grid(lr=[1e-2], eta=[0.01, 1.0], gamma=[0.55, 0.0]), make=_noisy),
    ],
    numbers={"lr": -1e-3, "eta": -1.0, "gamma": -1.0, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "weight_decay": 0.1},
)
