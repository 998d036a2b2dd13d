from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.muon import MATRICES, TranscribedAndAdamW
from hfoptim.engine import storage


def _peer(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The transcription, which begins with our noise."""
    options["bases"] = {}
    for place, (name, param) in enumerate(params.items()):
        if name in MATRICES:
            shorter = min(param.shape)
            shape = shorter, math.ceil(options.get("rank_fraction", 1.0) * shorter)
            options["bases"][name] = storage.normal(
                shape, storage.row_seed(0, place), torch.float64, torch.device("cpu")
            ).numpy()
    return TranscribedAndAdamW(hfoptim.Dion, who, params, options)


DION = Entry(
    "dion",
    hfoptim.Dion,
    variants={
        "half": Variant(
            {"rank_fraction": 0.5, "weight_decay": 0.1}, complex=False, alone=False, late=False, traceable=False
        )
    },
    references=[
        Reference(
            "transcriptions.Dion",
            grid(lr=[1e-2], rank_fraction=[1.0, 0.5], mu=[0.95, 0.5]) + grid(lr=[1e-2], power_iters=[2]),
            make=_peer,
            layouts=("matrix", "wide", "narrow", "transposed", "gaps", "scalar", "vector", "row"),
            tolerance=1e-8,
        )
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "mu": 1.5,
        "eps": -1e-8,
        "rank_fraction": 1.5,
        "rank_multiple_of": 0,
        "power_iters": 0,
        "fallback_lr_scale": -1.0,
    },
)
