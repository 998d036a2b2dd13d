from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import Transcribed


class AuthorsPadam(Transcribed):
    """uclaml/Padam, Padam.py."""

    defaults_ = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": True, "partial": 0.25}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, (beta1, beta2) = s["t"], o["betas"]
        g = g + o["weight_decay"] * p
        s["m"] = beta1 * s.get("m", 0.0) + (1 - beta1) * g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
        s["w"] = torch.maximum(s.get("w", torch.zeros_like(p)), s["v"]) if o["amsgrad"] else s["v"]
        step = o["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        return p - step * s["m"] / (s["w"].sqrt() + o["eps"]) ** (2 * o["partial"])


PADAM = Entry(
    "padam",
    hfoptim.Padam,
    variants={
        "amsgrad": Variant({"weight_decay": 0.1}, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "amsgrad": False, "partial": 0.125}),
    },
    references=[
        Reference(
            "cases.padam.AuthorsPadam",
            grid(lr=[1e-2], betas=BETAS, partial=[0.25, 0.125], weight_decay=[0.25]) + grid(lr=[1e-2], eps=[1e-2]),
        ),
        Reference(
            "pytorch_optimizer.PAdam",
            grid(lr=[1e-2], amsgrad=[False], partial=[0.25, 0.5], weight_decay=[0.0, 0.25]),
            without("amsgrad", foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "partial": 0.6},
)
