from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without

EXADAM = Entry(
    "exadam",
    hfoptim.EXAdam,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.EXAdam",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], maximize=[False, True]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0},
)
