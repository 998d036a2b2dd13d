from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

GROKADAMW = Entry(
    "grokadamw",
    hfoptim.GrokAdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, alone=False, compiled=True, layouts=("matrix", "conv")),
        "unclipped": Variant({"gradient_clipping": 0.0, "gamma": 0.0, "weight_decay": 0.0}, complex=False),
    },
    references=[
        transcription(
            hfoptim.GrokAdamW,
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-8, 1e-2])
            + grid(lr=[1e-2], gamma=[0.3], lamb=[0.5], alpha_init=[0.9], gradient_clipping=[0.0], weight_decay=[0.1]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "alpha_init": 1.1,
        "lamb": -1.0,
        "gamma": 1.1,
        "grokking_signal_decay_rate": -0.1,
        "gradient_clipping": -1.0,
    },
)
