from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid

FOCUS = Entry(
    "focus",
    hfoptim.FOCUS,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.FOCUS",
            # Decay rates with which a / (1 - beta2) is p exactly at the first step: else the peer takes the sign of a
            # rounding error.
            grid(lr=[1e-2], betas=[(0.9, 1.0 - 2.0**-8), (0.0, 0.75)], weight_decay=[0.0, 0.25], gamma=[0.1, 0.7]),
        ),
    ],
    numbers={"lr": -1e-3, "gamma": -0.1, "weight_decay": -0.1},
)
