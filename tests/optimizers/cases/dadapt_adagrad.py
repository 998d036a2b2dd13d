from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

DADAPT_ADAGRAD = Entry(
    "dadapt_adagrad",
    hfoptim.DAdaptAdaGrad,
    counted=False,
    variants={
        "plain": Variant({"d0": 1e-2}, lr=1.0, alone=False, linear=False),
        "momentum": Variant(
            {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "growth_rate": 1.5},
            lr=1.0,
            alone=False,
            linear=False,
            compiled=True,
        ),
    },
    references=[
        Reference(
            "dadaptation.DAdaptAdaGrad",
            [
                *grid(d0=[1e-2], weight_decay=[0.0, 0.25], momentum=[0.0, 0.9]),
                {"lr": 1.0, "d0": 1e-2, "growth_rate": 1.02, "eps": 1e-2},
            ],
        ),
    ],
    numbers={"lr": -1e-3, "momentum": 1.0, "eps": -1e-8, "weight_decay": -0.1, "d0": -1e-6, "growth_rate": 0.9},
    checkpoints=[Checkpoint("dadaptation.DAdaptAdaGrad", {}, {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.1})],
    small_steps={"lr": 1.0, "d0": 1e-3, "growth_rate": 1.0, "weight_decay": 0.1},
)
