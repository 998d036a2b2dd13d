from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

PID = Entry(
    "pid",
    hfoptim.PID,
    counted=False,
    variants={
        "momentum": Variant({"momentum": 0.9, "weight_decay": 0.1}, lr=1e-3, compiled=True),
        "plain": Variant({"weight_decay": 0.1}),
    },
    references=[
        Reference(
            "pytorch_optimizer.PID",
            grid(lr=[1e-3], momentum=[0.0, 0.9], dampening=[0.0, 0.4], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-3], momentum=[0.9], integral=[0.0, 2.0], derivative=[0.0, 3.0]),
            without(foreach=False),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": -0.1,
        "dampening": -0.1,
        "derivative": -1.0,
        "integral": -1.0,
        "weight_decay": -0.1,
    },
    small_steps={"lr": 1e-5, "momentum": 0.9},
)
