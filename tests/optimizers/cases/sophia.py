from __future__ import annotations

from dataclasses import replace
from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.adahessian import curvature
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import Transcribed

# Every so many steps the estimate takes the gradients of the step.
_EVERY = 3


class Estimating(hfoptim.SophiaG):
    """SophiaG with an estimate every few steps, of the gradients of the step: harnesses make no others."""

    @torch.no_grad()
    def step(self, closure: Any = None, *, loss: Any = None) -> Any:
        found = super().step(closure, loss=loss)
        if self.param_groups[0]["since"] == _EVERY:
            self.update_hessian()
        return found


class AuthorsSophiaG(Transcribed):
    """Liuhong99/Sophia, sophia.py, with `bs` as an option, and with such estimates."""

    defaults_ = {"lr": 1e-4, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1, "bs": 5120}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        beta1, beta2 = o["betas"]
        if s["t"] == 1:
            s |= {"m": g * 0, "h": g * 0}
        s["m"] = beta1 * s["m"] + (1 - beta1) * g
        ratio = (s["m"].abs() / (o["rho"] * o["bs"] * s["h"] + 1e-15)).clamp(None, 1)
        if s["t"] % _EVERY == 0:
            s["h"] = beta2 * s["h"] + (1 - beta2) * g * g
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * ratio * s["m"].sign()


SOPHIA_G = Entry(
    "sophiag",
    Estimating,
    variants={"decay": Variant({"weight_decay": 0.1, "bs": 10}, lr=1e-3, late=False, alone=False, compiled=True)},
    references=[
        Reference(
            "cases.sophia.AuthorsSophiaG",
            grid(lr=[1e-2], betas=[(0.965, 0.99), (0.5, 0.0)], weight_decay=[0.0, 0.25], bs=[2, 50]),
        ),
    ],
    numbers={"lr": -1e-3, "rho": -0.1, "weight_decay": -0.1, "bs": 0},
)


class Curved(hfoptim.SophiaH):
    """SophiaH with a Hessian that depends on the parameter alone; test_adahessian.py has the true one."""

    curvature = replace(hfoptim.SophiaH.curvature, estimate=lambda due, step: [curvature(param) for _, param, _ in due])


def _curved(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the same Hessian."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        def compute_hutchinson_hessian(self, **kwargs: Any) -> None:
            for group in self.param_groups:
                for param in group["params"]:
                    self.state[param]["hessian"] = curvature(param)

    return Peer(list(params.values()), **options)


SOPHIA_H = Entry(
    "sophiah",
    Curved,
    variants={
        "decay": Variant({"weight_decay": 0.1, "update_period": 3, "p": 0.5}, complex=False, compiled=True),
    },
    references=[
        Reference(
            "pytorch_optimizer.SophiaH",
            grid(lr=[1e-2], betas=[(0.96, 0.99), (0.5, 0.0)], weight_decay=[0.0, 0.25], p=[1.0], update_period=[10])
            + grid(lr=[1e-2], p=[0.1, 10.0], update_period=[1, 4], eps=[1e-2]),
            make=_curved,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "p": -0.1,
        "update_period": 0,
        "n_samples": 0,
        "eps": -1e-8,
    },
)
