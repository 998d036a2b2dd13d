from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import Transcribed


class AuthorsBCOS(Transcribed):
    """facebookresearch/bcos, bcos.py, mode c."""

    defaults_ = {"lr": 1e-3, "beta": 0.9, "beta2": None, "eps": 1e-6, "weight_decay": 0.1}
    defaults_ |= {"mode": "c", "decouple_wd": True, "simple_cond": False}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        beta, m = o["beta"], s.get("m", g)
        if o["decouple_wd"]:
            p = (1 - o["lr"] * o["weight_decay"]) * p
        else:
            g = g + o["weight_decay"] * p
        v = (3 * beta**2 - 2 * beta**3) * m**2 + (1 - beta) ** 2 * g**2 + 2 * beta * (1 - beta) ** 2 * m * g
        if o["simple_cond"]:
            b = 1 - (1 - beta) ** 2 if o["beta2"] is None else o["beta2"]
            v = b * m**2 + (1 - b) * g**2
        s["m"] = beta * m + (1 - beta) * g
        return p - o["lr"] * s["m"] / (v.sqrt() + o["eps"])


BCOS = Entry(
    "bcos",
    hfoptim.BCOS,
    variants={
        "conditional": Variant({"weight_decay": 0.1}, compiled=True),
        "momentum": Variant({"mode": "m", "decouple_wd": False, "weight_decay": 0.1}),
        "gradient": Variant({"mode": "g", "beta2": 0.99}),
    },
    references=[
        Reference(
            "cases.bcos.AuthorsBCOS",
            grid(lr=[1e-2], beta=[0.9, 0.3], weight_decay=[0.25], decouple_wd=[True, False])
            + grid(lr=[1e-2], simple_cond=[True], beta2=[None, 0.5], eps=[1e-2]),
        ),
        # In mode c it takes the new momentum for the old one.
        Reference(
            "pytorch_optimizer.BCOS",
            grid(lr=[1e-2], mode=["m", "g"], beta2=[None, 0.99], weight_decay=[0.25], decouple_wd=[True]),
            without("decouple_wd", foreach=False),
        ),
        Reference(
            "pytorch_optimizer.BCOS",
            grid(lr=[1e-2], mode=["m", "g"], weight_decay=[0.25], decouple_wd=[False]),
            without("decouple_wd", weight_decouple=False, foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "beta": -0.1, "beta2": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
