from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

ANO = Entry(
    "ano",
    hfoptim.Ano,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        transcription(
            hfoptim.Ano,
            grid(lr=[1e-2], betas=[(0.92, 0.99), (0.0, 0.6)], logarithmic_schedule=[False, True], weight_decay=[0.25])
            + grid(lr=[1e-2], eps=[1e-2]),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "pytorch_optimizer.Ano",
            grid(lr=[1e-2], eps=[1e-30], logarithmic_schedule=[False, True], weight_decay=[0.25]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
