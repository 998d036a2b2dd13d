from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

AGGMO = Entry(
    "aggmo",
    hfoptim.AggMo,
    variants={
        "three": Variant({"weight_decay": 0.1}, lr=1e-3, compiled=True),
        "two": Variant({"betas": (0.5, 0.9)}, lr=1e-3),
    },
    references=[
        Reference(
            "pytorch_optimizer.AggMo",
            grid(lr=[1e-2], betas=[(0.0, 0.9, 0.99), (0.5, 0.9)], weight_decay=[0.0, 0.25]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)
