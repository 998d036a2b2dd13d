from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

ADADELTA = Entry(
    "adadelta",
    hfoptim.Adadelta,
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1.0, compiled=True)},
    references=[
        Reference(
            "torch.optim.Adadelta",
            grid(lr=[1.0], rho=[0.9, 0.5], weight_decay=[0.0, 0.25])
            + grid(lr=[0.5], eps=[1e-2], maximize=[False, True]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "rho": 1.5, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[Checkpoint("torch.optim.Adadelta", {}, {"lr": 0.7, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.2})],
    small_steps={"lr": 0.1, "weight_decay": 0.1},
)
