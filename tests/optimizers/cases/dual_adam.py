from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

_DUAL_ADAM = grid(lr=[1e-2], betas=BETAS, switch_rate=[0.01, 0.3], weight_decay=[0.25]) + grid(
    lr=[1e-2], eps=[1e-2], weight_decay=[0.02], weight_decouple=[True], fixed_decay=[True, False]
)

DUAL_ADAM = Entry(
    "dualadam",
    hfoptim.DualAdam,
    variants={"l2": Variant({"weight_decay": 0.1, "switch_rate": 0.1}, compiled=True)},
    references=[
        transcription(hfoptim.DualAdam, _DUAL_ADAM),
        Reference(
            "pytorch_optimizer.DualAdam",
            _DUAL_ADAM,
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "switch_rate": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
