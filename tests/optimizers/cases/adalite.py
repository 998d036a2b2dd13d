from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid

ADALITE = Entry(
    "adalite",
    hfoptim.Adalite,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False),
        "l2": Variant({"weight_decay": 0.1, "weight_decouple": False}, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.Adalite",
            grid(lr=[1e-3], weight_decouple=[True, False], weight_decay=[0.1], tau=[1.0, 0.3])
            + grid(lr=[1e-3], betas=[(0.5, 0.9)], fixed_decay=[True], weight_decay=[1e-3], eps1=[1e-3]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "g_norm_min": -1.0,
        "ratio_min": -1.0,
        "tau": -1.0,
        "eps1": -1e-8,
        "eps2": -1.0,
    },
)
