from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant
from cases.muon import transcribed

RACS = Entry(
    "racs",
    hfoptim.RACS,
    counted=False,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-2, complex=False, alone=False, traceable=False)},
    references=[
        transcribed(
            hfoptim.RACS,
            [
                {"lr": 1e-2, "weight_decay": 0.25},
                {"lr": 1e-2, "beta": 0.5, "alpha": 0.5, "gamma": 2.0, "iterations": 1},
            ],
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta": 1.0,
        "alpha": -0.1,
        "gamma": -1.0,
        "weight_decay": -0.1,
        "eps": -1e-8,
        "iterations": 0,
        "fallback_lr_scale": -1.0,
    },
)
