from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.splus import InFloat64

_LAYOUTS = ("matrix", "transposed", "row", "column", "gaps", "q_proj.weight", "vector", "scalar", "conv")

CONDA = Entry(
    "conda",
    hfoptim.Conda,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, "update_proj_gap": 2}, lr=1e-3, complex=False, traceable=False, layouts=_LAYOUTS
        ),
        "full": Variant({"projection_type": "full"}, lr=1e-3, complex=False, traceable=False, layouts=_LAYOUTS),
    },
    references=[
        Reference(
            "pytorch_optimizer.Conda",
            grid(lr=[1e-2], projection_type=["std", "reverse_std", "left", "right", "full"])
            + grid(lr=[1e-2], update_proj_gap=[1], weight_decay=[0.25], scale=[0.5], projection_type=["std", "full"])
            + grid(lr=[1e-2], betas=[(0.5, 0.0), (0.0, 0.9)], eps=[1e-2], weight_decay=[0.1]),
            make=InFloat64,
            layouts=_LAYOUTS,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "update_proj_gap": 0, "scale": -1.0},
)
