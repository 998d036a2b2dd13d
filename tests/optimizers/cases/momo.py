from __future__ import annotations

from told import told

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

MOMO = Entry(
    "momo",
    told(hfoptim.Momo),
    variants={
        "plain": Variant({"lr": 0.1, "weight_decay": 0.1}, lr=0.1, alone=False, compiled=True, linear=False),
        "estimated": Variant(
            {"lr": 0.1, "bias_correction": True, "use_fstar": True}, lr=0.1, alone=False, linear=False
        ),
    },
    references=[
        transcription(
            hfoptim.Momo,
            grid(lr=[0.1, 1.0], weight_decay=[0.0, 0.05], bias_correction=[False, True], lb=[10.0])
            + grid(lr=[1.0], beta=[0.5, 0.0], use_fstar=[True], weight_decay=[0.05], bias_correction=[True, False]),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "beta": 1.0},
)

MOMO_ADAM = Entry(
    "momo_adam",
    told(hfoptim.MomoAdam),
    variants={
        "proximal": Variant({"weight_decay": 0.1}, alone=False, compiled=True, linear=False),
        "estimated": Variant({"use_fstar": True, "divide": False, "weight_decay": 0.1}, alone=False, linear=False),
    },
    references=[
        transcription(
            hfoptim.MomoAdam,
            grid(lr=[0.1, 3.0], weight_decay=[0.0, 0.05], divide=[False, True], lb=[10.0])
            + grid(lr=[1.0], betas=[(0.5, 0.9), (0.0, 0.99)], eps=[1e-2], use_fstar=[True], weight_decay=[0.05]),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
