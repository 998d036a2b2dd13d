from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

DADAPT_SGD = Entry(
    "dadapt_sgd",
    hfoptim.DAdaptSGD,
    counted=False,
    variants={
        "plain": Variant({"d0": 1e-1}, lr=1.0, alone=False),
        "momentum": Variant(
            {"d0": 1e-1, "momentum": 0.9, "weight_decay": 0.1, "growth_rate": 1.5},
            lr=1.0,
            alone=False,
            linear=False,
            compiled=True,
        ),
    },
    references=[
        Reference(
            "dadaptation.DAdaptSGD",
            [
                *grid(d0=[1e-1], weight_decay=[0.0, 0.25], momentum=[0.0, 0.9]),
                {"lr": 1.0, "d0": 1e-1, "growth_rate": 1.02},
            ],
        ),
    ],
    numbers={"lr": -1e-3, "momentum": 1.0, "weight_decay": -0.1, "d0": -1e-6, "growth_rate": 0.9},
    checkpoints=[Checkpoint("dadaptation.DAdaptSGD", {}, {"d0": 1e-1, "momentum": 0.9, "weight_decay": 0.1})],
    small_steps={"lr": 1.0, "d0": 1e-3, "growth_rate": 1.0, "weight_decay": 0.1},
)
