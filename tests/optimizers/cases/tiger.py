from __future__ import annotations

from harness import SMALL

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

TIGER = Entry(
    "tiger",
    hfoptim.Tiger,
    variants={
        "scaled": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "scale_parameter": False}, lr=1e-3),
    },
    references=[
        Reference(
            "pytorch_optimizer.Tiger",
            grid(lr=[1e-2], beta=[0.965, 0.5], weight_decay=[0.0, 0.25], scale_parameter=[False]),
            without("scale_parameter", foreach=False),
        ),
        transcription(
            hfoptim.Tiger,
            grid(lr=[1e-2], beta=[0.965, 0.5], weight_decay=[0.0, 0.25]),
            layouts=(*SMALL, "embed.weight"),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.0, "weight_decay": -0.1},
)
