from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without

YOGI = Entry(
    "yogi",
    hfoptim.Yogi,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "l2": Variant({"weight_decay": 0.1, "weight_decouple": False, "initial_accumulator": 0.1}),
    },
    references=[
        Reference(
            "pytorch_optimizer.Yogi",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.25], initial_accumulator=[1e-6, 0.1])
            + grid(lr=[1e-2], weight_decay=[0.02], fixed_decay=[True])
            + grid(lr=[1e-2], weight_decay=[0.25], weight_decouple=[False], eps=[1e-8]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "initial_accumulator": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
