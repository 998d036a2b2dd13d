from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without
from cases.repaired import without_root_eps
from cases.transcribed import Transcribed


def _po(options: Options) -> Options:
    return without("decoupled", weight_decouple=options.get("decoupled", True), foreach=False)(options)


PNM = Entry(
    "pnm",
    hfoptim.PNM,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.PNM",
            grid(lr=[1e-2], betas=[(0.9, 1.0), (0.5, 0.5), (0.0, 0.0)], weight_decay=[0.25], decoupled=[True, False]),
            _po,
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)


class AuthorsAdaPNM(Transcribed):
    """zeke-xie/Positive-Negative-Momentum, adapnm.py."""

    defaults_ = {"lr": 1e-3, "betas": (0.9, 0.999, 1.0), "eps": 1e-8, "weight_decay": 0.0}
    defaults_ |= {"amsgrad": True, "decoupled": True}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, (beta1, beta2, beta3) = s["t"], o["betas"]
        zero = torch.zeros_like(p)
        if o["decoupled"]:
            p = p * (1 - o["lr"] * o["weight_decay"])
        else:
            g = g + o["weight_decay"] * p
        # The names change places: the one that is moved is always `pos`.
        s["pos"], s["neg"] = s.get("neg", zero), s.get("pos", zero)
        s["pos"] = beta1**2 * s["pos"] + (1 - beta1**2) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
        s["w"] = torch.maximum(s.get("w", zero), s["v"]) if o["amsgrad"] else s["v"]
        divisor = s["w"].sqrt() / (1 - beta2**t) ** 0.5 + o["eps"]
        noise = ((1 + beta3) ** 2 + beta3**2) ** 0.5
        return p - o["lr"] / (1 - beta1**t) * ((1 + beta3) * s["pos"] - beta3 * s["neg"]) / noise / divisor


ADAPNM = Entry(
    "adapnm",
    hfoptim.AdaPNM,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "amsgrad": False, "decoupled": False}),
    },
    references=[
        Reference(
            "cases.pnm.AuthorsAdaPNM",
            grid(lr=[1e-2], betas=[(0.9, 0.999, 1.0), (0.5, 0.0, 2.5)], weight_decay=[0.25], decoupled=[True, False])
            + grid(lr=[1e-2], amsgrad=[False], eps=[1e-2]),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "pytorch_optimizer.AdaPNM",
            grid(lr=[1e-2], amsgrad=[False], eps=[1e-20], weight_decay=[0.25]),
            without("amsgrad", ams_bound=False),
            make=without_root_eps,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
