from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid, without


def _timm(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """timm's, whose second moment would be float32, with one that is as exact as the parameter."""
    optimizer = peers.load(who)(list(params.values()), **options)
    for param in params.values():
        moments = ("exp_avg_sq", "max_exp_avg_sq") if options.get("amsgrad") else ("exp_avg_sq",)
        optimizer.state[param] = {"step": 0, "exp_avg": torch.zeros_like(param)}
        optimizer.state[param] |= {name: torch.zeros((), dtype=param.dtype) for name in moments}
    return optimizer


_NOVOGRAD = grid(lr=[1e-2], betas=[(0.95, 0.98), *BETAS], weight_decay=[0.0, 0.25]) + grid(lr=[1e-2], eps=[1e-2])

NOVOGRAD = Entry(
    "novograd",
    hfoptim.NvNovoGrad,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "row", "large")),
        "amsgrad": Variant(
            {"amsgrad": True, "grad_averaging": True, "weight_decay": 0.1, "decoupled_decay": True}, complex=False
        ),
        "caution": Variant({"caution": True}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.nvnovograd.NvNovoGrad",
            _NOVOGRAD
            + grid(lr=[1e-2], weight_decay=[0.25], decoupled_decay=[True], grad_averaging=[False, True])
            + grid(lr=[1e-2], grad_averaging=[False, True], amsgrad=[False, True], weight_decay=[0.25]),
            make=_timm,
        ),
        # It takes the first gradient whole, so with grad_averaging it differs.
        Reference("pytorch_optimizer.NovoGrad", _NOVOGRAD, without(foreach=False)),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint(
            "timm.optim.nvnovograd.NvNovoGrad",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-4, "weight_decay": 0.2, "grad_averaging": True},
            tolerance=1e-6,  # timm's second moment is float32
        ),
        Checkpoint("timm.optim.nvnovograd.NvNovoGrad", {}, {"lr": 1e-2, "amsgrad": True}, tolerance=1e-6),
    ],
)
