from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

VSGD = Entry(
    "vsgd",
    hfoptim.VSGD,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.VSGD",
            grid(lr=[1e-2], ghattg=[30.0, 3.0], ps=[1e-8, 1e-2], weight_decay=[0.25])
            + grid(lr=[1e-2], tau1=[0.5], tau2=[0.7], eps=[1e-2]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "ghattg": -1.0, "ps": -1.0, "tau1": -0.1, "tau2": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
