from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import Transcribed


class AuthorsKate(Transcribed):
    """nazya/KATE, codes/optimizers.py, with eta by our name."""

    defaults_ = {"lr": 1e-3, "delta": 0.9, "eps": 1e-8, "weight_decay": 0.0}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        g = g + o["weight_decay"] * p
        s["b"] = s.get("b", 0.0) + g * g
        s["m"] = s.get("m", 0.0) + o["delta"] * g * g + g * g / (s["b"] + o["eps"])
        return p - o["lr"] * s["m"].sqrt() * g / (s["b"] + o["eps"])


KATE = Entry(
    "kate",
    hfoptim.Kate,
    variants={"decay": Variant({"weight_decay": 0.1, "delta": 0.1}, compiled=True)},
    references=[
        Reference(
            "cases.kate.AuthorsKate",
            grid(lr=[1e-2], delta=[0.0, 0.9], weight_decay=[0.25], weight_decouple=[False], eps=[1e-8, 1e-2]),
            without("weight_decouple"),
        ),
        # It adds eps at every step; of this size, that does not matter.
        Reference(
            "pytorch_optimizer.Kate",
            grid(lr=[1e-2], delta=[0.0, 0.9], weight_decay=[0.02], fixed_decay=[False, True], eps=[1e-30]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "delta": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
