from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.muon import transcribed

POLARGRAD = Entry(
    "polargrad",
    hfoptim.PolarGrad,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, alone=False)},
    references=[
        transcribed(
            hfoptim.PolarGrad,
            grid(lr=[1e-3], nesterov=[False, True], weight_decay=[0.1]) + grid(lr=[1e-3], momentum=[0.5]),
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "eps": -1e-8,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
    small_steps={"lr": 1e-5},
)
