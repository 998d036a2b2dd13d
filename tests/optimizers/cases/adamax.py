from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Reference, Variant, grid, without

ADAMAX = Entry(
    "adamax",
    hfoptim.Adamax,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "decoupled": Variant({"weight_decay": 0.1, "decoupled_weight_decay": True}),
    },
    references=[
        Reference(
            "torch.optim.Adamax",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], maximize=[False, True]),
            without(foreach=False),
        ),
        Reference(
            "pytorch_optimizer.AdaMax",
            grid(lr=[1e-2], weight_decay=[0.25], decoupled_weight_decay=[True]),
            without("decoupled_weight_decay", weight_decouple=True),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint("torch.optim.Adamax", {}, {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2}),
    ],
)
