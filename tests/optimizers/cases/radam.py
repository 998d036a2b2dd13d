from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

# The second of these stays below the threshold for five steps, the third for all.
_BETAS = [(0.9, 0.9), (0.9, 0.999), (0.5, 0.0)]

RADAM = Entry(
    "radam",
    hfoptim.RAdam,
    variants={
        "decoupled": Variant(
            {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.9, 0.95)}, compiled=True
        ),
        "l2": Variant({"weight_decay": 0.1}),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
    },
    references=[
        Reference(
            "torch.optim.RAdam",
            grid(lr=[1e-2], betas=_BETAS, weight_decay=[0.25], decoupled_weight_decay=[False, True])
            + grid(lr=[1e-2], eps=[1e-2], maximize=[False, True]),
            without(foreach=False),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "optimi.RAdam",
            grid(
                lr=[1e-2], betas=_BETAS[:2], eps=[1e-30], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03, None]
            ),
            without(foreach=False, triton=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0},
    checkpoints=[
        Checkpoint(
            "torch.optim.RAdam",
            {"decoupled_weight_decay": True},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
        ),
    ],
)
