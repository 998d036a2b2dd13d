from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

TAM = Entry(
    "tam",
    hfoptim.TAM,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        transcription(
            hfoptim.TAM,
            grid(lr=[1e-2], momentum=[0.9, 0.0], decay_rate=[0.9, 0.5], weight_decay=[0.25])
            + grid(lr=[1e-2], eps=[1e-2]),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "decay_rate": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)

ADATAM = Entry(
    "adatam",
    hfoptim.AdaTAM,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        transcription(
            hfoptim.AdaTAM,
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.25]) + grid(lr=[1e-2], betas=[(0.9, 0.999)], eps=[1e-2]),
        ),
        # The cosine of numbers is what it has for every entry.
        Reference(
            "pytorch_optimizer.AdaTAM",
            grid(lr=[1e-2], weight_decay=[0.02], fixed_decay=[False, True])
            + grid(lr=[1e-2], weight_decay=[0.25], weight_decouple=[False]),
            without(foreach=False),
            layouts=("scalar", "one"),
        ),
    ],
    numbers={"lr": -1e-3, "decay_rate": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
