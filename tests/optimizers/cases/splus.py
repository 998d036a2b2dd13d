from __future__ import annotations

from typing import Any
from unittest import mock

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


class InFloat64:
    """A peer that decomposes matrices in the dtype of its parameters, not in float32."""

    def __init__(self, who: str, params: dict[str, Tensor], options: Options) -> None:
        self.optimizer: Any = peers.load(who)(list(params.values()), **options)
        self.param_groups = self.optimizer.param_groups

    def step(self) -> None:
        with mock.patch.object(Tensor, "float", lambda tensor: tensor.clone()):
            self.optimizer.step()


# Gradients of these have no directions that are missing, among which any basis is one.
_SQUARE = ("q_proj.weight", "o_proj.weight", "vector", "scalar", "conv")

SPLUS = Entry(
    "splus",
    hfoptim.SPlus,
    # Without bases of sides longer than the other one: of those the gradients leave some of the vectors to rounding.
    variants={
        "decay": Variant({"weight_decay": 0.1, "max_dim": 4}, lr=1e-2, complex=False, traceable=False),
        "often": Variant(
            {"max_dim": 2, "inverse_steps": 2, "weight_decay": 0.0}, lr=1e-2, complex=False, traceable=False
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.SPlus",
            grid(lr=[1e-2], inverse_steps=[1, 3], weight_decay=[0.0, 0.5])
            + grid(lr=[1e-2], betas=[(0.5, 0.9)], inverse_steps=[2], nonstandard_constant=[0.1], eps=[1e-3]),
            make=InFloat64,
            layouts=_SQUARE,
        ),
        # One side has a basis, or none; the step size is that of a matrix, or not.
        Reference(
            "pytorch_optimizer.SPlus",
            grid(lr=[1e-2], inverse_steps=[2], max_dim=[3, 4, 5]),
            make=InFloat64,
            layouts=("matrix", "transposed", "gaps"),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "ema_rate": 1.0,
        "inverse_steps": 0,
        "nonstandard_constant": -0.1,
        "max_dim": 0,
        "eps": -1e-8,
    },
    small_steps={"lr": 0.1, "max_dim": 1},
)
