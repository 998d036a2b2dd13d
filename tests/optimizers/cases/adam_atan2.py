from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Variant, grid
from cases.transcribed import transcription

ADAM_ATAN2 = Entry(
    "adam_atan2",
    hfoptim.AdamAtan2,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "constants": Variant({"a": 1.0, "b": 2.0, "maximize": True}),
        "regenerating": Variant({"regen_reg_rate": 0.1, "cautious_factor": 0.5}, complex=False),
    },
    references=[
        transcription(
            hfoptim.AdamAtan2,
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], a=[1.0], b=[1.0, 2.0])
            + grid(lr=[1e-2], regen_reg_rate=[0.25], decouple_lr=[False, True], cautious_factor=[1.0, 0.3])
            + grid(lr=[1e-2], weight_decay=[0.25], cautious_factor=[0.0]),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "max_lr": -1.0, "a": -1.0, "b": -1.0, "regen_reg_rate": -0.1}
    | {"cautious_factor": 1.5},
)
