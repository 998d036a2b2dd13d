from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without

_KERAS = {
    "lr_power": "learning_rate_power",
    "lambda_1": "l1_regularization_strength",
    "lambda_2": "l2_regularization_strength",
    "l2_shrinkage": "l2_shrinkage_regularization_strength",
}


def _keras(options: Options) -> Options:
    """Its strengths of L2 are half of ours."""
    theirs: Options = {}
    for name, value in options.items():
        theirs[_KERAS.get(name, name)] = value / 2 if name in ("lambda_2", "l2_shrinkage") else value
    return theirs


def _make_keras(who: str, params: dict[str, Tensor], options: Options) -> Any:
    return peers.KerasOptimizer(list(params.items()), options.pop("lr"), lambda name: False, "Ftrl", **options)


FTRL = Entry(
    "ftrl",
    hfoptim.FTRL,
    variants={
        "penalties": Variant(
            {"lambda_1": 0.01, "lambda_2": 0.1, "beta": 1.0, "l2_shrinkage": 0.1}, linear=False, compiled=True
        )
    },
    references=[
        Reference(
            "pytorch_optimizer.FTRL",
            grid(lr=[1e-2], beta=[0.0, 1.0], lambda_1=[0.0, 0.1], lambda_2=[0.0, 0.3]),
            without(foreach=False),
        ),
        Reference(
            "keras.optimizers.Ftrl",
            grid(lr=[1e-2], initial_accumulator_value=[0.1], lr_power=[-0.5, -0.7], l2_shrinkage=[0.3])
            + grid(lr=[1e-2], beta=[1.0], lambda_1=[0.1], lambda_2=[0.3], initial_accumulator_value=[0.1]),
            _keras,
            make=_make_keras,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "lr_power": 0.5,
        "beta": -0.1,
        "lambda_1": -0.1,
        "lambda_2": -0.1,
        "l2_shrinkage": -0.1,
        "initial_accumulator_value": -0.1,
    },
    small_steps={"lr": 1e-4},
)
