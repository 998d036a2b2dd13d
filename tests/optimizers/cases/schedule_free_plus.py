from __future__ import annotations

from told import told

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

_ANNEALED = {"sf_beta1": 0.8, "sf_beta1_anneal_steps": 7, "sf_beta1_max": 0.95, "c_warmup": 3}

SCHEDULE_FREE_PLUS = Entry(
    "adamc_schedule_free_plus",
    told(hfoptim.AdamCScheduleFreePlus),
    counted=False,
    variants={
        "annealed": Variant(
            {"lr": 0.1, "weight_decay": 20.0, **_ANNEALED}, lr=0.1, alone=False, linear=False, compiled=True
        ),
        "power": Variant(
            {"lr": 0.1, "polyak_beta": 0.9, "r": 2.0, "weight_lr_power": 1.0}, lr=0.1, alone=False, linear=False
        ),
    },
    references=[
        transcription(
            hfoptim.AdamCScheduleFreePlus,
            grid(lr=[0.1], weight_decay=[0.0, 20.0], sf_beta1=[0.8], sf_beta1_anneal_steps=[0, 20], c_warmup=[0, 5])
            + grid(lr=[0.1], betas=[(0.5, 0.0), (0.0, 0.9)], polyak_beta=[0.9], r=[1.5], eps=[1e-2])
            + grid(lr=[0.1], weight_lr_power=[0.0, 1.0], r=[0.5]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "sf_beta1": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "r": -1.0,
        "polyak_beta": 1.0,
        "c_warmup": -1,
        "sf_beta1_anneal_steps": -1,
        "sf_beta1_max": 1.0,
        "weight_lr_power": -1.0,
    },
    small_steps={"lr": 5e-3},  # y takes a tenth of a step
)
