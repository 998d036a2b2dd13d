from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without

GRAMS = Entry(
    "grams",
    hfoptim.Grams,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "pytorch_optimizer.Grams",
            grid(lr=[1e-2], betas=BETAS, eps=[1e-30], weight_decay=[0.0, 0.25]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
