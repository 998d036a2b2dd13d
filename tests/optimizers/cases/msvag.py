from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

MSVAG = Entry(
    "msvag",
    hfoptim.MSVAG,
    variants={"default": Variant(compiled=True)},
    references=[
        Reference("pytorch_optimizer.MSVAG", grid(lr=[1e-2], beta=[0.9, 0.5, 0.99]), without(foreach=False)),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "beta": 1.0},
    small_steps={"lr": 1e-4},
)
