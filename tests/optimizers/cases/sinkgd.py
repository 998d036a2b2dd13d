from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.muon import transcribed

SINKGD = Entry(
    "sinkgd",
    hfoptim.SinkGD,
    counted=False,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, alone=False)},
    references=[
        transcribed(hfoptim.SinkGD, grid(lr=[1e-2], sinkhorn_iterations=[5, 1], weight_decay=[0.0, 0.25])),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "eps": -1e-8, "sinkhorn_iterations": 0, "fallback_lr_scale": -1.0},
)
