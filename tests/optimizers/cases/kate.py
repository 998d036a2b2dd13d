from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

KATE = Entry(
    "kate",
    hfoptim.Kate,
    variants={"decay": Variant({"weight_decay": 0.1, "delta": 0.1}, compiled=True)},
    references=[
        transcription(
            hfoptim.Kate,
            grid(lr=[1e-2], delta=[0.0, 0.9], weight_decay=[0.25], weight_decouple=[False], eps=[1e-8, 1e-2]),
        ),
        # It adds eps at every step; of this size, that does not matter.
        Reference(
            "pytorch_optimizer.Kate",
            grid(lr=[1e-2], delta=[0.0, 0.9], weight_decay=[0.02], fixed_decay=[False, True], eps=[1e-30]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "delta": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
