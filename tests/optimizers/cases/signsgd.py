from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

SIGNSGD = Entry(
    "signsgd",
    hfoptim.SignSGD,
    counted=False,
    variants={
        "momentum": Variant({"weight_decay": 0.1}, lr=1e-3, compiled=True),
        "plain": Variant({"momentum": 0.0, "weight_decay": 0.1, "weight_decouple": False}, lr=1e-3),
    },
    references=[
        Reference(
            "pytorch_optimizer.SignSGD",
            grid(lr=[1e-2], momentum=[0.9, 0.0], weight_decay=[0.0, 0.25], weight_decouple=[True, False]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "weight_decay": -0.1},
)
