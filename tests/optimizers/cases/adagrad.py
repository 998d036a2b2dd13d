from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

ADAGRAD = Entry(
    "adagrad",
    hfoptim.Adagrad,
    variants={
        "decay": Variant({"weight_decay": 0.1, "lr_decay": 0.1}, compiled=True),
        "initial": Variant({"initial_accumulator_value": 0.1}),
    },
    references=[
        Reference(
            "torch.optim.Adagrad",
            grid(lr=[1e-2], lr_decay=[0.0, 0.1], initial_accumulator_value=[0.0, 0.1], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.25], maximize=[False, True]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "lr_decay": -0.1, "initial_accumulator_value": -0.1, "eps": -1e-10, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint("torch.optim.Adagrad", {}, {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-4}),
        Checkpoint("torch.optim.Adagrad", {}, {"initial_accumulator_value": 0.3, "maximize": True}),
    ],
)
