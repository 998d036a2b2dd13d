from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid

SM3 = Entry(
    "sm3",
    hfoptim.SM3,
    variants={
        "sum": Variant(
            {"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")
        ),
        "average": Variant({"beta": 0.9, "momentum": 0.9}, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.SM3",
            grid(lr=[1e-2], momentum=[0.0, 0.9], eps=[1e-30, 1e-2]),
        ),
        # Its bound of a scalar falls with beta.
        Reference(
            "pytorch_optimizer.SM3",
            grid(lr=[1e-2], beta=[0.9], momentum=[0.0, 0.9]),
            layouts=("one", "vector", "matrix", "row", "column", "conv", "transposed", "gaps"),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": 1.0, "beta": 1.0, "eps": -1e-8, "weight_decay": -0.1},
)
