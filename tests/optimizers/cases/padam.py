from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

PADAM = Entry(
    "padam",
    hfoptim.Padam,
    variants={
        "amsgrad": Variant({"weight_decay": 0.1}, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "amsgrad": False, "partial": 0.125}),
    },
    references=[
        transcription(
            hfoptim.Padam,
            grid(lr=[1e-2], betas=BETAS, partial=[0.25, 0.125], weight_decay=[0.25]) + grid(lr=[1e-2], eps=[1e-2]),
        ),
        Reference(
            "pytorch_optimizer.PAdam",
            grid(lr=[1e-2], amsgrad=[False], partial=[0.25, 0.5], weight_decay=[0.0, 0.25]),
            without("amsgrad", foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "partial": 0.6},
)
