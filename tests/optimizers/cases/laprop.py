from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid, without
from cases.repaired import without_root_eps


def _timm(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """timm's, whose bias correction of v would be float32, with one in double precision."""
    optimizer = peers.load(who)(list(params.values()), **options)
    for param in params.values():
        optimizer.state[param] = {
            "step": torch.zeros((), dtype=torch.float64),
            "exp_avg": torch.zeros_like(param),
            "exp_avg_lr_1": 0.0,
            "exp_avg_lr_2": torch.zeros((), dtype=torch.float64),
            "exp_avg_sq": torch.zeros_like(param),
        }
    return optimizer


def _po(options: Options) -> Options:
    """`amsgrad` by its name in pytorch_optimizer."""
    return {{"amsgrad": "ams_bound"}.get(name, name): value for name, value in options.items()}


LAPROP = Entry(
    "laprop",
    hfoptim.LaProp,
    variants={
        "decay": Variant({"weight_decay": 0.1}, linear=False, compiled=True),
        "caution": Variant({"caution": True}, complex=False, linear=False),
        "centered": Variant(
            {"weight_decay": 0.1, "centered": True, "amsgrad": True, "steps_before_using_centered": 3}, linear=False
        ),
    },
    references=[
        Reference(
            "timm.optim.laprop.LaProp",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.25], caution=[False, True], corrected_weight_decay=[True]),
            without(foreach=False),
            make=_timm,
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference("pytorch_optimizer.LaProp", grid(lr=[1e-2], eps=[1e-30], weight_decay=[0.25]), make=without_root_eps),
        Reference(
            "pytorch_optimizer.LaProp",
            grid(lr=[1e-2], betas=[(0.9, 0.9)], eps=[1e-30], centered=[True], steps_before_using_centered=[10, 0])
            + grid(lr=[1e-2], betas=[(0.9, 0.9)], eps=[1e-30], amsgrad=[True])
            + grid(
                lr=[1e-2],
                betas=[(0.9, 0.9)],
                eps=[1e-30],
                amsgrad=[True],
                centered=[True],
                steps_before_using_centered=[0],
            ),
            _po,
            make=without_root_eps,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "steps_before_using_centered": -1},
    checkpoints=[
        Checkpoint(
            "timm.optim.laprop.LaProp",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
            tolerance=1e-6,  # timm's bias correction of v is float32
        )
    ],
)
