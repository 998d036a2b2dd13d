from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

_ADASMOOTH = grid(lr=[1e-2], betas=[(0.5, 0.99), (0.0, 0.9)], weight_decay=[0.0, 0.25]) + grid(lr=[1e-2], eps=[1e-2])

ADASMOOTH = Entry(
    "adasmooth",
    hfoptim.AdaSmooth,
    variants={"decay": Variant({"weight_decay": 0.1, "weight_decouple": True}, compiled=True)},
    references=[
        transcription(
            hfoptim.AdaSmooth,
            _ADASMOOTH + grid(lr=[1e-2], weight_decay=[0.02], weight_decouple=[True], fixed_decay=[False, True]),
        ),
        # Its decoupled decay comes before it looks at the parameter.
        Reference(
            "pytorch_optimizer.AdaSmooth",
            _ADASMOOTH,
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
