from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import Transcribed


class PapersTAM(Transcribed):
    """arXiv 2412.18790, the momentum of algorithm 1; with betas over the root of a second moment."""

    defaults_ = {"lr": 1e-3, "momentum": 0.9, "decay_rate": 0.9, "weight_decay": 0.0, "eps": 1e-8}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        p, m = p * (1 - o["lr"] * o["weight_decay"]), s.get("m", torch.zeros_like(g))
        sizes = torch.linalg.vector_norm(m) * torch.linalg.vector_norm(g)
        cosine = float((m * g).sum() / sizes) if sizes > 0 else 0.0
        s["s"] = o["decay_rate"] * s.get("s", 0.0) + (1 - o["decay_rate"]) * cosine
        damping = (1 + s["s"]) / 2
        if "betas" not in o:
            s["m"] = o["momentum"] * m + (o["eps"] + damping) * g
            return p - o["lr"] * s["m"]
        s["m"] = o["betas"][0] * m + (o["eps"] + damping) * g
        s["v"] = o["betas"][1] * s.get("v", 0.0) + (1 - o["betas"][1]) * g**2
        return p - o["lr"] * s["m"] / (s["v"].sqrt() + o["eps"])


TAM = Entry(
    "tam",
    hfoptim.TAM,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        Reference(
            "cases.tam.PapersTAM",
            grid(lr=[1e-2], momentum=[0.9, 0.0], decay_rate=[0.9, 0.5], weight_decay=[0.25])
            + grid(lr=[1e-2], eps=[1e-2]),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "decay_rate": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)

ADATAM = Entry(
    "adatam",
    hfoptim.AdaTAM,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        Reference(
            "cases.tam.PapersTAM",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.25]) + grid(lr=[1e-2], betas=[(0.9, 0.999)], eps=[1e-2]),
        ),
        # The cosine of numbers is what it has for every entry.
        Reference(
            "pytorch_optimizer.AdaTAM",
            grid(lr=[1e-2], weight_decay=[0.02], fixed_decay=[False, True])
            + grid(lr=[1e-2], weight_decay=[0.25], weight_decouple=[False]),
            without(foreach=False),
            layouts=("scalar", "one"),
        ),
    ],
    numbers={"lr": -1e-3, "decay_rate": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
