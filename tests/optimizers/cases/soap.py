from __future__ import annotations

import sys
import types
from typing import Any
from unittest import mock

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import transcription

# Where every factor has full rank from the first gradient on: elsewhere eigenvectors of 0 are anybody's choice.
FULL_RANK = ("scalar", "one", "vector", "conv", "channels_last", "mixed", "o_proj.weight")
# With factors for sides of at most 4.
_SMALL_SIDES = (*FULL_RANK, "matrix", "transposed", "gaps")


class InFloat64:
    """pytorch_optimizer's, whose QR decomposition is in double precision as everything else."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups
        self.module = sys.modules[type(optimizer).__module__]
        self.torch = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})

    def step(self) -> None:
        with mock.patch.object(self.module, "torch", self.torch):
            self.optimizer.step()


def _po(who: str, params: dict[str, Tensor], options: Options) -> Any:
    names = {"max_precond_dim": "max_precondition_dim", "normalize_grads": "normalize_gradient"}
    return InFloat64(peers.load(who)(list(params.values()), **{names.get(k, k): v for k, v in options.items()}))


SOAP = Entry(
    "soap",
    hfoptim.SOAP,
    variants={
        # How a product is rounded depends on where its matrices lie in memory, and so on what is stacked with them.
        "default": Variant(
            {"precondition_frequency": 2, "weight_decay": 0.0}, complex=False, alone=False, traceable=False
        ),
        "merged": Variant(
            {
                "merge_dims": True,
                "max_precond_dim": 12,
                "precondition_1d": True,
                "normalize_grads": True,
                "data_format": "channels_last",
                "weight_decay": 0.1,
            },
            complex=False,
            alone=False,
            traceable=False,
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.SOAP",
            grid(lr=[1e-2], precondition_frequency=[1, 4], weight_decay=[0.0, 0.1])
            + grid(lr=[1e-2], betas=[(0.5, 0.99)], shampoo_beta=[0.8], correct_bias=[False], maximize=[True]),
            make=_po,
            layouts=FULL_RANK,
        ),
        Reference(
            "pytorch_optimizer.SOAP",
            grid(lr=[1e-2], max_precond_dim=[4], precondition_1d=[True], precondition_frequency=[2]),
            make=_po,
            layouts=_SMALL_SIDES,
        ),
        transcription(
            hfoptim.SOAP,
            [
                {"lr": 1e-2, "merge_dims": True, "precondition_frequency": 3, "max_precond_dim": 6, **more}
                for more in ({"data_format": "channels_last"}, {"normalize_grads": True})
            ],
            layouts=("vector", "conv", "mixed", "stack"),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "shampoo_beta": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "precondition_frequency": 0,
        "max_precond_dim": 0,
    },
    small_steps={"lr": 1e-5},
)
