from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.muon import transcribed

ADAGO = Entry(
    "adago",
    hfoptim.AdaGO,
    variants={
        "decay": Variant({"weight_decay": 0.1, "eps": 1e-5}, complex=False, alone=False, linear=False),
    },
    references=[
        transcribed(
            hfoptim.AdaGO,
            grid(lr=[1e-2], nesterov=[False, True], gamma=[10.0, 1.0], eps=[1e-5])
            + grid(lr=[1e-2], momentum=[0.5], weight_decay=[0.25], v=[0.1]),
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "gamma": -1.0,
        "v": -1.0,
        "adam_eps": -1e-8,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
    small_steps={"lr": 1e-4, "eps": 1e-6},
)
