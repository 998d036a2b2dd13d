from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

NERO = Entry(
    "nero",
    hfoptim.Nero,
    variants={
        "balanced": Variant({}, complex=False, linear=False, compiled=True, layouts=("matrix", "conv", "vector")),
        "free": Variant({"constraints": False, "weight_decay": 0.1}, complex=False),
    },
    references=[
        transcription(
            hfoptim.Nero,
            grid(lr=[1e-2], beta=[0.999, 0.5], constraints=[True, False]) + grid(lr=[1e-2], eps=[1e-2]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.0, "eps": -1.0, "bias_scale": -1.0, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "constraints": False},
)
