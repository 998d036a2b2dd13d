from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

FROMAGE = Entry(
    "fromage",
    hfoptim.Fromage,
    counted=False,
    variants={"default": Variant(complex=False, compiled=True, linear=False)},
    references=[
        Reference("pytorch_optimizer.Fromage", grid(lr=[1e-2, 0.3], maximize=[False, True]), without(foreach=False)),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
    small_steps={"lr": 1e-4},
)
