from __future__ import annotations

import dataclasses

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.muon import transcribed

# Of equal rows, whichever is chosen is as good as any other.
_UNEQUAL = ("matrix", "wide", "narrow", "transposed", "gaps", "scalar", "one", "vector", "row", "column")

DION2 = Entry(
    "dion2",
    hfoptim.Dion2,
    variants={
        "half": Variant({"fraction": 0.5, "weight_decay": 0.1}, complex=False, alone=False),
        "nordion2": Variant({"algo": "nordion2", "weight_decay": 0.1}, complex=False, alone=False),
    },
    references=[
        dataclasses.replace(
            transcribed(
                hfoptim.Dion2,
                grid(lr=[1e-2], algo=["dion2", "nordion2"], fraction=[0.25, 0.6], ef_decay=[0.95])
                + grid(lr=[1e-2], algo=["nordion2"], ef_decay=[0.5], beta2=[0.5], weight_decay=[0.25])
                + grid(lr=[1e-2], fraction=[1.0], adjust_lr_fn=["match_rms_adamw"]),
            ),
            layouts=_UNEQUAL,
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "fraction": 1.5,
        "ef_decay": 1.5,
        "beta2": 1.0,
        "eps": -1e-8,
        "ns_steps": 0,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
)
