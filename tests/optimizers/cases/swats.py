from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


class _Algorithm1:
    """The paper's algorithm 1 for one vector of all parameters, with an L2 penalty, line by line."""

    def __init__(
        self,
        params: dict[str, Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-9,
        weight_decay: float = 0.0,
    ) -> None:
        self.params, self.betas, self.eps, self.weight_decay = list(params.values()), betas, eps, weight_decay
        self.param_groups = [{"params": self.params, "lr": lr}]
        self.k, self.phase, self.lam, self.big_lambda, self.lr_then = 0, "Adam", 0.0, 0.0, 0.0
        self.m: Any = 0.0
        self.a: Any = 0.0
        self.v: Any = 0.0

    @torch.no_grad()
    def step(self) -> None:
        w = torch.cat([p.reshape(-1) for p in self.params])
        g = torch.cat([p.grad.reshape(-1) for p in self.params if p.grad is not None]) + self.weight_decay * w
        (beta1, beta2), lr = self.betas, self.param_groups[0]["lr"]
        assert isinstance(lr, float)
        self.k += 1
        if self.phase == "SGD":
            self.v = beta1 * self.v + g
            w = w - (1 - beta1) * self.big_lambda * (lr / self.lr_then) * self.v
        else:
            self.m = beta1 * self.m + (1 - beta1) * g
            self.a = beta2 * self.a + (1 - beta2) * g**2
            p = -lr * math.sqrt(1 - beta2**self.k) / (1 - beta1**self.k) * self.m / (torch.sqrt(self.a) + self.eps)
            w = w + p
            if float(p @ g) != 0:
                gamma = float(p @ p) / -float(p @ g)
                self.lam = beta2 * self.lam + (1 - beta2) * gamma
                found = self.lam / (1 - beta2**self.k)
                if self.k > 1 and found > 0 and abs(found - gamma) < self.eps:
                    self.phase, self.v, self.big_lambda, self.lr_then = "SGD", 0.0, found, lr
        for param, new in zip(self.params, w.split([p.numel() for p in self.params]), strict=True):
            param.copy_(new.reshape(param.shape))


def _algorithm_1(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return _Algorithm1(params, **options)


SWATS = Entry(
    "swats",
    hfoptim.SWATS,
    variants={
        "switching": Variant({"eps": 1e-3, "weight_decay": 0.1}, linear=False, alone=False, late=False, compiled=True),
    },
    references=[
        # With a large eps it switches within a few steps.
        Reference(
            "pytorch_optimizer.SWATS",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-9, 1e-2], weight_decay=[0.0, 0.25]),
            make=_algorithm_1,
        ),
        # While one tensor steps as Adam, there is no difference but the 1e-15 in its root.
        Reference("pytorch_optimizer.SWATS", [{"lr": 1e-2, "eps": 1e-6}], layouts=("matrix",), tolerance=1e-6),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
