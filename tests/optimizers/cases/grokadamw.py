from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim import Optimizer

import hfoptim
from cases.entry import Entry, Reference, Variant, grid


class AuthorsGrokAdamW(Optimizer):
    """cognitivecomputations/grokadamw, grokadamw.py, with a constant signal."""

    def __init__(self, params: Any, **options: Any) -> None:
        defaults = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "alpha_init": 0.98}
        more = {"lamb": 2.0, "gamma": 0.1, "signal": 0.0, "grokking_signal_decay_rate": 0.1, "gradient_clipping": 1.0}
        super().__init__(params, {**defaults, **more, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for o in self.param_groups:
            beta1, beta2 = o["betas"]
            alpha = o["alpha_init"] * math.exp(-o["grokking_signal_decay_rate"] * o["signal"])
            for i, p in enumerate(o["params"]):
                s, g = self.state[p], p.grad.clone()
                t = s["t"] = s.get("t", 0) + 1
                if o["gradient_clipping"] > 0:
                    g *= min(1.0, o["gradient_clipping"] / (float(g.norm()) + 1e-6))
                slow = s["slow"] = alpha * s.get("slow", 0.0) + (1 - alpha) * g
                g = g + o["lamb"] * slow
                b = beta1 * (1 - o["gamma"]) ** i
                m = s["m"] = b * s.get("m", 0.0) + (1 - b) * g
                v = s["v"] = beta2 * s.get("v", 0.0) + (1 - beta2) * g**2
                size = o["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                p.copy_(p * (1 - o["lr"] * o["weight_decay"]) - size * m / (v.sqrt() + o["eps"]))


GROKADAMW = Entry(
    "grokadamw",
    hfoptim.GrokAdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, alone=False, compiled=True, layouts=("matrix", "conv")),
        "unclipped": Variant({"gradient_clipping": 0.0, "gamma": 0.0, "weight_decay": 0.0}),
    },
    references=[
        Reference(
            "cases.grokadamw.AuthorsGrokAdamW",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-8, 1e-2])
            + grid(lr=[1e-2], gamma=[0.3], lamb=[0.5], alpha_init=[0.9], gradient_clipping=[0.0], weight_decay=[0.1]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "alpha_init": 1.1,
        "lamb": -1.0,
        "gamma": 1.1,
        "grokking_signal_decay_rate": -0.1,
        "gradient_clipping": -1.0,
    },
)
