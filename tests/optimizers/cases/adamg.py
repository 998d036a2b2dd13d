from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

_BETAS = [(0.95, 0.999, 0.95), (0.5, 0.0, 0.9), (0.0, 0.9, 0.0)]

_ADAMG = (
    grid(lr=[0.2], betas=_BETAS, weight_decay=[0.25], weight_decouple=[False, True])
    + grid(lr=[0.2], weight_decay=[0.02], weight_decouple=[True], fixed_decay=[True])
    + grid(lr=[1.0], p=[0.5], q=[0.5], eps=[1e-2], maximize=[True])
)

ADAMG = Entry(
    "adamg",
    hfoptim.AdamG,
    variants={
        "l2": Variant({"weight_decay": 0.1, "lr": 1e-2}, compiled=True),
        "decoupled": Variant({"weight_decay": 0.1, "weight_decouple": True, "lr": 1e-2}),
    },
    references=[
        transcription(hfoptim.AdamG, _ADAMG),
        Reference(
            "pytorch_optimizer.AdamG",
            _ADAMG,
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "p": -1.0, "q": -1.0, "eps": -1e-8, "weight_decay": -0.1},
)
