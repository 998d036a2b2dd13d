from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

SRMM = Entry(
    "srmm",
    hfoptim.SRMM,
    variants={"proximal": Variant({"proximal": 10.0, "weight_decay": 0.1}, linear=False, compiled=True)},
    references=[
        transcription(
            hfoptim.SRMM,
            grid(lr=[1e-2], beta=[0.3, 0.5], memory_length=[7, None])
            + grid(lr=[1e-2], proximal=[30.0], memory_length=[100]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.5, "memory_length": 0, "proximal": -1.0, "weight_decay": -0.1},
)
