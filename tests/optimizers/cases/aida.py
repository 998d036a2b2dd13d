from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

AIDA = Entry(
    "aida",
    hfoptim.Aida,
    variants={"l2": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        transcription(
            hfoptim.Aida,
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], K=[2], weight_decay=[0.25])
            + grid(lr=[1e-2], K=[1, 4], xi=[1e-20, 1.0], eps=[1e-8]),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "K": -1, "xi": -1.0},
)
