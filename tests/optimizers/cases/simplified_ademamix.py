from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import Transcribed


class SimAdEMAMix(Transcribed):
    """Algorithm 1 of arXiv 2502.02431, with the warm-up of the authors' file: half-lives that grow linearly."""

    defaults_: ClassVar[Options] = {
        **{"lr": 1e-4, "betas": (0.99, 0.95), "alpha": 0.0, "beta1_warmup": None, "min_beta1": 0.9},
        **{"eps": 1e-8, "weight_decay": 0.0},
    }

    @staticmethod
    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta + 1e-8) - 1

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        (beta1, beta2), warmup = o["betas"], o["beta1_warmup"]
        beta = beta1
        if warmup is not None and s["t"] < warmup:
            share = s["t"] / warmup
            steps = (1 - share) * self.half_life(o["min_beta1"]) + share * self.half_life(beta1)
            beta = 0.5 ** (1 / (steps + 1))
        s["m"] = beta * s.get("m", 0.0) + g
        s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
        root = (s["v"] / (1 - beta2 ** s["t"])).sqrt()
        update = (s["m"] + o["alpha"] * g) / (root + o["eps"])
        return p - o["lr"] * (update + o["weight_decay"] * p)


SIMPLIFIED_ADEMAMIX = Entry(
    "simplified_ademamix",
    hfoptim.SimplifiedAdEMAMix,
    variants={
        "decay": Variant({"weight_decay": 0.1, "alpha": 2.0}, lr=1e-3),
        "warmup": Variant({"beta1_warmup": 6, "weight_decay": 0.1}, lr=1e-3, compiled=True),
    },
    references=[
        Reference(
            "cases.simplified_ademamix.SimAdEMAMix",
            grid(lr=[1e-3], betas=[(0.99, 0.95), (0.5, 0.0), (0.0, 0.9)], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-3], alpha=[2.0], eps=[1e-2], beta1_warmup=[None, 30], min_beta1=[0.5], weight_decay=[0.25]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "alpha": -1.0,
        "beta1_warmup": -1,
        "min_beta1": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "max_lr": -1.0,
    },
)
