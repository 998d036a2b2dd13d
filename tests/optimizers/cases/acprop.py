from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Variant, grid
from cases.transcribed import transcription

_MORE: list[Options] = [
    {"weight_decay": 0.25, "rectify": True, "fixed_decay": True},
    {"weight_decay": 0.25, "rectify": True, "degenerated_to_sgd": False, "betas": (0.9, 0.99)},
    {"weight_decay": 0.25, "weight_decouple": False, "rectify": False, "momentum_update": True},
    {"rectify": True, "momentum_update": True, "amsgrad": True},
]

ACPROP = Entry(
    "acprop",
    hfoptim.ACProp,
    variants={
        "decay": Variant({"weight_decay": 0.1, "rectify": False}, compiled=True),
        "rectified": Variant({"weight_decay": 0.1, "betas": (0.9, 0.99)}),
        "amsgrad": Variant({"amsgrad": True, "rectify": False, "weight_decouple": False, "weight_decay": 0.1}),
    },
    references=[
        transcription(
            hfoptim.ACProp,
            [{**options, "lr": 1e-2} for options in _MORE]
            + grid(lr=[1e-2], rectify=[False], amsgrad=[False, True], eps=[1e-16, 1e-4]),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
