from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.repaired import without_root_eps

DIFFGRAD = Entry(
    "diffgrad",
    hfoptim.DiffGrad,
    variants={"l2": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.DiffGrad",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25]) + grid(lr=[1e-2], eps=[1e-2]),
            without(weight_decouple=False),
            make=without_root_eps,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
