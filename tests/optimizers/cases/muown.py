from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.muon import transcribed

MUOWN = Entry(
    "muown",
    hfoptim.Muown,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, alone=False, linear=False)},
    references=[
        transcribed(
            hfoptim.Muown,
            grid(lr=[1e-2], adjust_lr_fn=["match_rms_adamw", "original"], weight_decay=[0.1])
            + grid(lr=[1e-2], momentum=[0.5], betas=[(0.5, 0.9)], eps=[1e-3]),
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
)
