from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import transcription

SWATS = Entry(
    "swats",
    hfoptim.SWATS,
    variants={
        "switching": Variant({"eps": 1e-3, "weight_decay": 0.1}, linear=False, alone=False, late=False, compiled=True),
        "options": Variant(
            {"eps": 1e-3, "weight_decay": 0.1, "amsgrad": True, "nesterov": True, "weight_decouple": True},
            **{"linear": False, "alone": False, "late": False},
        ),
    },
    references=[
        # With a large eps it switches within a few steps.
        transcription(
            hfoptim.SWATS,
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-9, 1e-2], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.25], amsgrad=[True], nesterov=[True, False])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.02], weight_decouple=[True], fixed_decay=[False, True]),
        ),
        # While one tensor steps as Adam, there is no difference but the 1e-15 in its root.
        Reference("pytorch_optimizer.SWATS", [{"lr": 1e-2, "eps": 1e-6}], layouts=("matrix",), tolerance=1e-6),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
