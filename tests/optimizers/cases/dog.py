from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import transcription

_RUNS = [*grid(reps_rel=[1e-2], weight_decay=[0.0, 0.25], eps=[1e-8, 1e-2]), {"lr": 0.5, "init_eta": 1e-2}]
_NUMBERS = {"reps_rel": -1e-6, "lr": -1e-3, "weight_decay": -0.1, "eps": -1e-8, "init_eta": -1e-3}

DOG = Entry(
    "dog",
    hfoptim.DoG,
    variants={
        "decay": Variant({"reps_rel": 1e-2, "weight_decay": 0.1}, lr=1.0, alone=False, compiled=True),
        "first": Variant({"init_eta": 1e-2}, lr=1.0, alone=False, linear=False),
    },
    references=[Reference("dog.DoG", _RUNS)],
    numbers=_NUMBERS,
    small_steps={"reps_rel": 1e-4, "weight_decay": 0.1},
)

LDOG = Entry(
    "ldog",
    hfoptim.LDoG,
    variants={
        "decay": Variant({"reps_rel": 1e-2, "weight_decay": 0.1}, lr=1.0, complex=False, compiled=True),
        "first": Variant({"init_eta": 1e-2}, lr=1.0, complex=False, linear=False),
    },
    references=[Reference("dog.LDoG", _RUNS)],
    numbers=_NUMBERS,
    small_steps={"reps_rel": 1e-4, "weight_decay": 0.1},
)

DOWG = Entry(
    "dowg",
    hfoptim.DoWG,
    variants={"decay": Variant({"eps": 1e-2, "weight_decay": 0.1}, lr=1.0, alone=False, compiled=True)},
    references=[
        transcription(
            hfoptim.DoWG,
            [*grid(eps=[1e-2], weight_decay=[0.0, 0.25], init_estim_sq_dist=[None, 0.1]), {"lr": 0.5, "eps": 1e-1}],
        )
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "eps": -1e-8, "init_estim_sq_dist": -1e-3},
    small_steps={"eps": 1e-4, "lr": 0.1, "weight_decay": 0.1},
)
