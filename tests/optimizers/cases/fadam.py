from __future__ import annotations

import torch

import hfoptim
from cases.entry import BETAS, Entry, Reference, Variant, grid, without
from cases.transcribed import transcription

_FADAM = grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25]) + grid(
    lr=[1e-2], p=[0.4], clip=[0.5], eps=[1e-3, 0.1], eps_2=[0.02], maximize=[True]
)

FADAM = Entry(
    "fadam",
    hfoptim.FAdam,
    variants={"decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True)},
    references=[
        transcription(hfoptim.FAdam, _FADAM),
        Reference(
            "pytorch_optimizer.FAdam",
            _FADAM,
            without(foreach=False, momentum_dtype=torch.float64, fim_dtype=torch.float64),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "clip": -1.0,
        "p": -0.5,
        "eps": -1e-8,
        "eps_2": -0.01,
    },
)
