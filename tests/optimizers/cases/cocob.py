from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

COCOB = Entry(
    "cocob",
    hfoptim.COCOB,
    variants={"bold": Variant({"alpha": 3.0, "eps": 1e-2, "weight_decay": 0.1}, lr=1.0, linear=False, compiled=True)},
    references=[
        # lr counts only where a gradient is below eps.
        transcription(hfoptim.COCOB, [*grid(alpha=[3.0], weight_decay=[0.0, 0.25]), {"lr": 0.5, "eps": 1.0}])
    ],
    numbers={"lr": -1e-3, "alpha": -1.0, "eps": -1e-8, "weight_decay": -0.1},
    small_steps={"eps": 1e-8},
)
