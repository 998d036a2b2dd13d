from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without
from hfoptim.engine import storage


def _begun_alike(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The peer with the noise that ours begins with, of which it takes the deviation by its own lr."""
    peer = peers.load(who)(list(params.values()), **options)
    for place, param in enumerate(params.values()):
        noise = storage.normal(param.shape, storage.row_seed(0, place), param.dtype, torch.device("cpu"))
        peer.state[param]["v"] = torch.empty_like(param).copy_(noise * options["alpha"] / options["lr"])
    return peer


GRAVITY = Entry(
    "gravity",
    hfoptim.Gravity,
    variants={
        "decay": Variant({"weight_decay": 0.1}, lr=0.1, complex=False, alone=False, linear=False, compiled=True),
        "still": Variant({"alpha": 0.0}, lr=0.1, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.Gravity",
            grid(lr=[0.1], alpha=[0.01, 0.0], beta=[0.9, 0.5]),
            without(foreach=False),
            make=_begun_alike,
        ),
    ],
    numbers={"lr": -1e-3, "alpha": -0.1, "beta": 1.1, "weight_decay": -0.1},
)
