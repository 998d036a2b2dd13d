from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid, without


def _exact(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, whose weights of the averages would be float32, with weights as exact as the parameter."""
    optimizer = peers.load(who)(list(params.values()), **options)
    for param in params.values():
        weights = {name: torch.zeros(1, dtype=param.dtype) for name in ("beta1_weight", "beta2_weight")}
        optimizer.state[param] = {**weights, **{m: torch.zeros_like(param) for m in ("exp_avg", "exp_avg_sq")}}
    return optimizer


QHM = Entry(
    "qhm",
    hfoptim.QHM,
    variants={
        "l2": Variant({"weight_decay": 0.1}, compiled=True),
        "decoupled": Variant({"weight_decay": 0.1, "weight_decay_type": "direct"}),
    },
    references=[
        Reference(
            "pytorch_optimizer.QHM",
            grid(lr=[1e-2], momentum=[0.9, 0.999], nu=[0.7, 1.0, 0.0], weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], momentum=[0.9], nu=[0.7], weight_decay=[0.25], weight_decay_type=["direct"]),
            lambda options: (
                without("weight_decay_type", foreach=False)(options)
                | {"weight_decouple": options.get("weight_decay_type") == "direct"}
            ),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "nu": -0.1, "weight_decay": -0.1},
    small_steps={"lr": 1e-2, "weight_decay": 0.1},
)

QHADAM = Entry(
    "qhadam",
    hfoptim.QHAdam,
    variants={
        "l2": Variant({"nus": (0.7, 0.9), "weight_decay": 0.1}, compiled=True),
        "decoupled": Variant({"nus": (0.7, 1.0), "weight_decay": 0.1, "decouple_weight_decay": True}),
    },
    references=[
        Reference(
            "pytorch_optimizer.QHAdam",
            grid(lr=[1e-2], betas=BETAS, nus=[(0.7, 1.0), (1.0, 0.9), (0.0, 0.5)], eps=[1e-8])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.25], decouple_weight_decay=[False, True]),
            lambda options: (
                without("decouple_weight_decay", foreach=False)(options)
                | {"weight_decouple": options.get("decouple_weight_decay", False)}
            ),
            make=_exact,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
