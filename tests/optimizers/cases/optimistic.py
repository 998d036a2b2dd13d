from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Variant, grid
from cases.transcribed import transcription

OPTIMISTIC_GRADIENT_DESCENT = Entry(
    "optimistic_gradient_descent",
    hfoptim.OptimisticGradientDescent,
    variants={"decay": Variant({"weight_decay": 0.1, "alpha": 0.5}, compiled=True)},
    references=[
        transcription(hfoptim.OptimisticGradientDescent, grid(lr=[1e-2], alpha=[1.0, 0.5], beta=[1.0, 0.3])),
    ],
    numbers={"lr": -1e-3, "alpha": -1.0, "beta": -1.0, "weight_decay": -0.1},
)

OPTIMISTIC_ADAM = Entry(
    "optimistic_adam",
    hfoptim.OptimisticAdam,
    variants={
        "decay": Variant({"weight_decay": 0.1, "alpha": 0.5}, compiled=True),
        "plain": Variant({"nesterov": False}),
    },
    references=[
        transcription(
            hfoptim.OptimisticAdam,
            grid(lr=[1e-2], betas=BETAS, nesterov=[True, False], weight_decay=[0.25])
            + grid(lr=[1e-2], alpha=[0.5], beta=[0.3], eps=[1e-2]),
        ),
    ],
    numbers={"lr": -1e-3, "alpha": -1.0, "beta": -1.0, "eps": -1e-8, "weight_decay": -0.1},
)
