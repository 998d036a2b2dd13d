from __future__ import annotations

from told import at_one_place

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

# Gradients of both places are the same here; tests/optimizers/test_bsam.py has two.
BSAM = Entry(
    "bsam",
    at_one_place(hfoptim.BSAM),
    variants={
        "plain": Variant({"lr": 0.1}, lr=1e-2, compiled=True),
        "decay": Variant({"lr": 0.1, "weight_decay": 0.1, "damping": 0.5, "s_init": 0.5}, lr=1e-2),
    },
    references=[
        transcription(
            hfoptim.BSAM,
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], s_init=[1.0, 0.3])
            + grid(lr=[1e-2], betas=[(0.5, 0.0), (0.0, 0.9)], damping=[0.01, 1.0]),
        )
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "rho": -0.1, "damping": -0.1, "num_data": -1.0, "s_init": -1.0},
)
