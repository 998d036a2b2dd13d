from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

SIMPLIFIED_ADEMAMIX = Entry(
    "simplified_ademamix",
    hfoptim.SimplifiedAdEMAMix,
    variants={
        "decay": Variant({"weight_decay": 0.1, "alpha": 2.0}, lr=1e-3),
        "warmup": Variant({"beta1_warmup": 6, "weight_decay": 0.1}, lr=1e-3, compiled=True),
        "corrections": Variant({"bias_correction1": True, "bias_correction2": False, "beta1_warmup": 6}, lr=1e-3),
    },
    references=[
        transcription(
            hfoptim.SimplifiedAdEMAMix,
            grid(lr=[1e-3], betas=[(0.99, 0.95), (0.5, 0.0), (0.0, 0.9)], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-3], alpha=[2.0], eps=[1e-2], beta1_warmup=[None, 30], min_beta1=[0.5], weight_decay=[0.25])
            + grid(lr=[1e-2], bias_correction1=[True], bias_correction2=[True, False], beta1_warmup=[None, 20.5]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "alpha": -1.0,
        "beta1_warmup": -1,
        "min_beta1": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "max_lr": -1.0,
    },
)
