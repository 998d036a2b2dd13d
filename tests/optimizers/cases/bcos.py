from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

BCOS = Entry(
    "bcos",
    hfoptim.BCOS,
    variants={
        "conditional": Variant({"weight_decay": 0.1}, compiled=True),
        "momentum": Variant({"mode": "m", "decouple_wd": False, "weight_decay": 0.1}),
        "gradient": Variant({"mode": "g", "beta2": 0.99}),
    },
    references=[
        transcription(
            hfoptim.BCOS,
            grid(lr=[1e-2], beta=[0.9, 0.3], weight_decay=[0.25], decouple_wd=[True, False])
            + grid(lr=[1e-2], mode=["m", "g", "c"], weight_decay=[0.0], decouple_wd=[False])
            + grid(lr=[1e-2], simple_cond=[True], beta2=[None, 0.5], eps=[1e-2]),
        ),
        # In mode c it takes the new momentum for the old one.
        Reference(
            "pytorch_optimizer.BCOS",
            grid(lr=[1e-2], mode=["m", "g"], beta2=[None, 0.99], weight_decay=[0.25], decouple_wd=[True]),
            without("decouple_wd", foreach=False),
        ),
        Reference(
            "pytorch_optimizer.BCOS",
            grid(lr=[1e-2], mode=["m", "g"], weight_decay=[0.25], decouple_wd=[False]),
            without("decouple_wd", weight_decouple=False, foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "beta": -0.1, "beta2": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
