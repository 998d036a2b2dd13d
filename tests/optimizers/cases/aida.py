from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import Transcribed


class AuthorsAida(Transcribed):
    """guoqiang-zhang-x/Aida-Optimizer, Aida.py."""

    defaults_ = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "K": 2, "xi": 1e-20}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, (beta1, beta2) = s["t"], o["betas"]
        g = g + o["weight_decay"] * p
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        x, y = g, s["m"]
        for _ in range(o["K"]):
            product = (x * y).sum()
            x, y = product / ((x**2).sum() + o["xi"]) * x, product / ((y**2).sum() + o["xi"]) * y
        s["s"] = beta2 * s.get("s", 0.0) + (1 - beta2) * (y - x) ** 2 + o["eps"]
        divisor = s["s"].sqrt() / (1 - beta2**t) ** 0.5
        return p - o["lr"] / (1 - beta1**t) * s["m"] / divisor


AIDA = Entry(
    "aida",
    hfoptim.Aida,
    variants={"l2": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        Reference(
            "cases.aida.AuthorsAida",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], K=[2], weight_decay=[0.25])
            + grid(lr=[1e-2], K=[1, 4], xi=[1e-20, 1.0], eps=[1e-8]),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "K": -1, "xi": -1.0},
)
