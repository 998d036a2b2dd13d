from __future__ import annotations

import math
from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import Transcribed


class AuthorsAno(Transcribed):
    """Adrienkgz/ano-experiments, ano.py and anolog.py."""

    defaults_ = {"lr": 1e-4, "betas": (0.92, 0.99), "weight_decay": 0.0, "eps": 1e-8, "logarithmic_schedule": False}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, (beta1, beta2) = s["t"], o["betas"]
        if o["logarithmic_schedule"]:
            beta1 = 1 - 1 / math.log(max(2, t))
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        v = s.get("v", g * 0.0)
        s["v"] = beta2 * v + (1 - beta2) * (g**2 - v).sign() * g**2
        rate = o["lr"] / (s["v"] / (1 - beta2**t) + o["eps"]).sqrt()
        return p * (1 - o["lr"] * o["weight_decay"]) - rate * g.abs() * s["m"].sign()


ANO = Entry(
    "ano",
    hfoptim.Ano,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "cases.ano.AuthorsAno",
            grid(lr=[1e-2], betas=[(0.92, 0.99), (0.0, 0.6)], logarithmic_schedule=[False, True], weight_decay=[0.25])
            + grid(lr=[1e-2], eps=[1e-2]),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "pytorch_optimizer.Ano",
            grid(lr=[1e-2], eps=[1e-30], logarithmic_schedule=[False, True], weight_decay=[0.25]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
