from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import Transcribed


class JettifysA2Grad(Transcribed):
    """jettify/pytorch-optimizer, a2grad.py: its three classes, with a factor of the step size."""

    defaults_ = {"lr": 1.0, "beta": 10.0, "lips": 10.0, "rho": 0.5, "variant": "uni", "weight_decay": 0.0}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        k, g = s["t"] - 1, g + o["weight_decay"] * p
        if k == 0:
            s |= {"alpha": 1.0, "v": 0.0, "w": 0.0, "mean": g.clone(), "x": p.clone()}
        s["mean"] = (k * s["mean"] + g) / (k + 1)
        d = ((g - s["mean"]) ** 2).sum()
        h = 1.0
        if o["variant"] == "exp":
            s["w"] = d if k == 0 else o["rho"] * s["w"] + (1 - o["rho"]) * d
            s["v"], h = max(s["w"], s["v"]), (k + 1) ** 0.5
        else:
            s["v"] = s["v"] * ((k / (k + 1)) ** 2 if o["variant"] == "inc" else 1.0) + d
        c = o["lr"] / (2 * o["lips"] / (k + 1) + o["beta"] * h * s["v"] ** 0.5)
        alpha = 2 / (k + 3)
        s["x"] = s["x"] - c * g
        p = (1 - alpha) * p + alpha * s["x"] - (1 - alpha) * s["alpha"] * c * g
        s["alpha"] = alpha
        return p


A2GRAD = Entry(
    "a2grad",
    hfoptim.A2Grad,
    variants={
        "uni": Variant({"weight_decay": 0.1}, complex=False, linear=False, compiled=True),
        "inc": Variant({"variant": "inc"}, complex=False, linear=False),
        "exp": Variant({"variant": "exp"}, complex=False, linear=False),
    },
    references=[
        Reference(
            "cases.a2grad.JettifysA2Grad",
            grid(lr=[1.0], variant=["uni", "inc", "exp"], beta=[10.0, 1.0], lips=[10.0])
            + grid(lr=[0.5], variant=["exp"], rho=[0.9], lips=[1.0], weight_decay=[0.25]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": -1.0, "lips": -1.0, "rho": 1.5, "weight_decay": -0.1},
    small_steps={"lips": 1000.0},
)
