from __future__ import annotations

from typing import Any, ClassVar

import torch
from told import loss_of, told
from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid


class _Paper:
    """Algorithms 1 and 2 of arXiv 2305.07583, over all parameters as one vector x."""

    defaults: ClassVar[dict[str, Any]]
    d: Tensor
    f_bar: float
    gamma: float

    def __init__(self, params: list[Tensor], **options: Any) -> None:
        self.params, self.k = params, 0
        self.param_groups = [{"params": params, **self.defaults, **options}]
        self.x_shapes = [param.shape for param in params]

    def flat(self, tensors: list[Any]) -> Tensor:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    @torch.no_grad()
    def step(self) -> None:
        self.k += 1
        x, g = self.flat(self.params), self.flat([param.grad for param in self.params])
        x = self.moved(x, g, float(loss_of(self.param_groups)), self.param_groups[0])
        for param, part in zip(self.params, x.split([param.numel() for param in self.params]), strict=True):
            param.copy_(part.view(param.shape))

    def moved(self, x: Tensor, g: Tensor, loss: float, o: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def step_size(self, x: Tensor, squared: float, rho: float, o: dict[str, Any]) -> float:
        """tau of both algorithms, and f* estimated as in their section 4.1."""
        alpha, lam, d = o["lr"], o["weight_decay"], self.d
        dx, grown = float(d @ x), 1 + alpha * lam
        if self.k == 1:
            self.f_star = o["lb"]
        if o["use_fstar"] and grown * self.f_bar + dx - grown * self.gamma < grown * rho * self.f_star:
            self.f_star = max((grown * self.f_bar + dx - grown * self.gamma) / (2 * grown * rho), o["lb"])
        positive = max(grown * (self.f_bar - rho * self.f_star) + dx - grown * self.gamma, 0.0)
        tau = min(alpha / rho, positive / squared)
        if o["use_fstar"]:
            self.f_star = max((self.f_bar + dx - self.gamma - tau * squared / 2) / rho, o["lb"])
        return tau


class PaperMomo(_Paper):
    defaults = {
        "lr": 1.0,
        "weight_decay": 0.0,
        "beta": 0.9,
        "lb": 0.0,
        "bias_correction": False,
        "use_fstar": False,
    }

    def moved(self, x: Tensor, g: Tensor, loss: float, o: dict[str, Any]) -> Tensor:
        beta = o["beta"]
        if self.k == 1 and o["bias_correction"]:
            self.d, self.f_bar, self.gamma = g * 0, 0.0, 0.0
        elif self.k == 1:
            self.d, self.f_bar, self.gamma = g, loss, float(g @ x)
        self.d = beta * self.d + (1 - beta) * g
        self.f_bar = beta * self.f_bar + (1 - beta) * loss
        self.gamma = beta * self.gamma + (1 - beta) * float(g @ x)
        rho = 1 - beta**self.k if o["bias_correction"] else 1.0
        tau = self.step_size(x, float(self.d @ self.d), rho, o)
        return (x - tau * self.d) / (1 + o["lr"] * o["weight_decay"])


class PaperMomoAdam(_Paper):
    defaults = {
        "lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "lb": 0.0,
        "divide": True,
        "use_fstar": False,
    }

    def moved(self, x: Tensor, g: Tensor, loss: float, o: dict[str, Any]) -> Tensor:
        b1, b2 = o["betas"]
        if self.k == 1:
            self.d, self.v, self.f_bar, self.gamma = g * 0, g * 0, 0.0, 0.0
        self.d = b1 * self.d + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        big_d = o["eps"] + (self.v / (1 - b2**self.k)) ** 0.5
        self.f_bar = b1 * self.f_bar + (1 - b1) * loss
        self.gamma = b1 * self.gamma + (1 - b1) * float(g @ x)
        tau = self.step_size(x, float(self.d @ (self.d / big_d)), 1 - b1**self.k, o)
        decay = o["lr"] * o["weight_decay"]
        step = tau * self.d / big_d
        return (x - step) / (1 + decay) if o["divide"] else (1 - decay) * x - step


MOMO = Entry(
    "momo",
    told(hfoptim.Momo),
    variants={
        "plain": Variant({"lr": 0.1, "weight_decay": 0.1}, lr=0.1, alone=False, compiled=True, linear=False),
        "estimated": Variant(
            {"lr": 0.1, "bias_correction": True, "use_fstar": True}, lr=0.1, alone=False, linear=False
        ),
    },
    references=[
        Reference(
            "cases.momo.PaperMomo",
            grid(lr=[0.1, 1.0], weight_decay=[0.0, 0.05], bias_correction=[False, True], lb=[10.0])
            + grid(lr=[1.0], beta=[0.5, 0.0], use_fstar=[True], weight_decay=[0.05], bias_correction=[True, False]),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "beta": 1.0},
)

MOMO_ADAM = Entry(
    "momo_adam",
    told(hfoptim.MomoAdam),
    variants={
        "proximal": Variant({"weight_decay": 0.1}, alone=False, compiled=True, linear=False),
        "estimated": Variant({"use_fstar": True, "divide": False, "weight_decay": 0.1}, alone=False, linear=False),
    },
    references=[
        Reference(
            "cases.momo.PaperMomoAdam",
            grid(lr=[0.1, 3.0], weight_decay=[0.0, 0.05], divide=[False, True], lb=[10.0])
            + grid(lr=[1.0], betas=[(0.5, 0.9), (0.0, 0.99)], eps=[1e-2], use_fstar=[True], weight_decay=[0.05]),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
