from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

A2GRAD = Entry(
    "a2grad",
    hfoptim.A2Grad,
    variants={
        "uni": Variant({"weight_decay": 0.1}, linear=False, compiled=True),
        "inc": Variant({"variant": "inc"}, linear=False),
        "exp": Variant({"variant": "exp"}, linear=False),
    },
    references=[
        transcription(
            hfoptim.A2Grad,
            grid(lr=[1.0], variant=["uni", "inc", "exp"], beta=[10.0, 1.0], lips=[10.0])
            + grid(lr=[0.5], variant=["exp"], rho=[0.9], lips=[1.0], weight_decay=[0.25]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": -1.0, "lips": -1.0, "rho": 1.5, "weight_decay": -0.1},
    small_steps={"lips": 1000.0},
)
