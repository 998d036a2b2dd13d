from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Variant, grid
from cases.muon import Together
from cases.transcribed import Peer, transcription


def _and_adamw(who: Any, params: dict[str, Tensor], options: Options) -> Together:
    """The transcription for matrices and torch.optim.AdamW for everything else."""
    adamw = {name: options[name] for name in ("lr", "weight_decay", "eps", "betas")}
    return Together(
        Peer(who, {name: param for name, param in params.items() if param.ndim > 1}, options),
        torch.optim.AdamW([param for param in params.values() if param.ndim < 2], **adamw),
    )


_LAYOUTS = ("matrix", "wide", "transposed", "gaps", "conv", "scalar", "vector")

MARS_M = Entry(
    "mars_m",
    hfoptim.MarsM,
    variants={
        "decay": Variant({"weight_decay": 0.1, "gamma": 0.5}, complex=False, alone=False),
        "caution": Variant({"caution": True, "weight_decay": 0.0}, complex=False, alone=False),
    },
    references=[
        transcription(
            hfoptim.MarsM,
            grid(lr=[1e-2], gamma=[0.025, 0.5], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], momentum=[0.5], ns_steps=[2], betas=[(0.5, 0.9)], eps=[1e-3]),
            _and_adamw,
            layouts=_LAYOUTS,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "momentum": 1.0,
        "gamma": -0.1,
        "ns_steps": 0,
        "eps": -1e-8,
        "fallback_lr_scale": -1.0,
    },
    small_steps={"lr": 1e-4},
)
