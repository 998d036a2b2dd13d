from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _peers(options: Options) -> Options:
    out = {("ams_bound" if name == "amsgrad" else name): value for name, value in options.items()}
    return {**out, "foreach": False}


SARA = Entry(
    "sara",
    hfoptim.SaRA,
    variants={
        "chosen": Variant({"threshold": 1.5, "weight_decay": 0.1}, lr=1e-2, complex=False, compiled=True),
        "refined": Variant({"threshold": 0.7, "progressive_iter": 3, "amsgrad": True}, lr=1e-2, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.SaRA",
            [
                *grid(lr=[1e-2], threshold=[0.7], progressive_iter=[-1, 0, 9], amsgrad=[False, True]),
                {"lr": 1e-2, "threshold": 1.0, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.25},
            ],
            _peers,
            layouts=("matrix", "conv", "transposed", "gaps", "mixed"),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "threshold": -0.1,
        "progressive_iter": -2,
    },
    small_steps={"lr": 1e-4, "weight_decay": 0.1, "threshold": 9.0},
)
