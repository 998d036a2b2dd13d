from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

SGDW = Entry(
    "sgdw",
    hfoptim.SGDW,
    counted=False,
    variants={
        "nesterov": Variant({"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, compiled=True),
        "momentum": Variant({"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    },
    references=[
        Reference(
            "timm.optim.sgdw.SGDW",
            grid(lr=[1e-2], momentum=[0.0, 0.9], dampening=[0.0, 0.4], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], momentum=[0.9], nesterov=[True], caution=[False, True], maximize=[False, True])
            + grid(lr=[1e-2], momentum=[0.9], caution=[True], weight_decay=[0.25]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "dampening": -0.1, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint("timm.optim.sgdw.SGDW", {}, {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ],
    small_steps={"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.1},
)
