from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

KOURKOUTAS = Entry(
    "kourkoutas",
    hfoptim.Kourkoutas,
    variants={
        "plain": Variant({"weight_decay": 0.1}, lr=1e-3, complex=False, compiled=True),
        "all": Variant(
            {"max_decay": 0.98, "max_ratio": 3.0, "adaptive_tiny": True, "bias_correction": "exact", "warmup_steps": 2},
            complex=False,
        ),
    },
    references=[
        transcription(
            hfoptim.Kourkoutas,
            grid(lr=[1e-3], bias_correction=["none", "beta2max", "exact"], warmup_steps=[0, 5], weight_decay=[0.25])
            + grid(lr=[1e-3], max_decay=[0.98, None], max_ratio=[0.7], adaptive_tiny=[True], tiny_denom=[1e-2])
            + grid(lr=[1e-3], max_decay=[0.9], beta1=[0.5], beta2_min=[0.0], alpha=[0.5], eps=[1e-3]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta1": 1.0,
        "beta2_max": 1.0,
        "beta2_min": -0.1,
        "eps": -1e-8,
        "alpha": 1.0,
        "weight_decay": -0.1,
        "tiny_spike": -1e-8,
        "tiny_denom": -1e-8,
        "max_decay": 1.5,
        "max_ratio": -1.0,
        "warmup_steps": -1,
    },
)
