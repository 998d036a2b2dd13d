from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Reference, Variant, grid, without

_DECAY = [{"weight_decay": 0.0}, {"weight_decay": 0.25}, {"weight_decay": 0.25, "decoupled": True}]
_RUNS = [
    *grid(lr=[1e-2], betas=BETAS, clip_exp=[0.333, None]),
    {"lr": 1e-2, "clip_exp": 0.0, "eps": 1e-2},
    {"lr": 1e-2, "maximize": True},
    {"lr": 1e-2, "caution": True},
]

ADOPT = Entry(
    "adopt",
    hfoptim.Adopt,
    variants={
        "decoupled": Variant({"weight_decay": 0.1, "decoupled": True, "cautious_weight_decay": True}, compiled=True),
        "unclipped": Variant({"weight_decay": 0.1, "clip_exp": None}),
        "caution": Variant({"caution": True}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.adopt.Adopt", [{**run, **decay} for decay in _DECAY for run in _RUNS], without(foreach=False)
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "clip_exp": -0.1, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint(
            "timm.optim.adopt.Adopt",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "decoupled": True},
        ),
        Checkpoint("timm.optim.adopt.Adopt", {"decoupled": True}, {"clip_exp": None, "weight_decay": 0.2}),
    ],
)
