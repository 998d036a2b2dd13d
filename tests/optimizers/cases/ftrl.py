from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

FTRL = Entry(
    "ftrl",
    hfoptim.FTRL,
    variants={"penalties": Variant({"lambda_1": 0.01, "lambda_2": 0.1, "beta": 1.0}, linear=False, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.FTRL",
            grid(lr=[1e-2], beta=[0.0, 1.0], lambda_1=[0.0, 0.1], lambda_2=[0.0, 0.3]),
            without(foreach=False),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "lr_power": 0.5,
        "beta": -0.1,
        "lambda_1": -0.1,
        "lambda_2": -0.1,
        "initial_accumulator_value": -0.1,
    },
    small_steps={"lr": 1e-4},
)
