from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

_DESCENTS = [{}, {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.4}, {"momentum": 0.9, "nesterov": True}]
_STEPS = grid(lr=[0.1], trust_coeff=[1e-3, 0.1], weight_decay=[0.0, 0.25], trust_clip=[False, True]) + grid(
    lr=[0.1], trust_coeff=[0.1], eps=[0.5], always_adapt=[True], trust_clip=[False, True]
)

LARS = Entry(
    "lars",
    hfoptim.Lars,
    counted=False,
    variants={
        "momentum": Variant(
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "trust_coeff": 0.1, "weight_decay": 0.1},
            lr=0.1,
            complex=False,
        ),
        "larc": Variant(
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "trust_coeff": 0.1, "trust_clip": True, "weight_decay": 0.1},
            lr=0.1,
            complex=False,
            compiled=True,
            layouts=("vector", "row", "large"),
        ),
        "plain": Variant({"lr": 0.1, "trust_coeff": 0.1, "weight_decay": 0.1}, lr=0.1, complex=False),
        "not_adapted": Variant({"lr": 1e-2, "momentum": 0.9}),
    },
    references=[
        Reference(
            "timm.optim.lars.Lars",
            [{**step, **descent} for descent in _DESCENTS for step in _STEPS],
            without(foreach=False),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": -0.1,
        "dampening": -0.1,
        "weight_decay": -0.1,
        "trust_coeff": -0.1,
        "eps": -1e-8,
    },
    checkpoints=[
        Checkpoint(
            "timm.optim.lars.Lars",
            {},
            {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "trust_coeff": 0.1},
        ),
        Checkpoint(
            "timm.optim.lars.Lars",
            {"momentum": 0.5},
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "trust_clip": True, "always_adapt": True},
        ),
        Checkpoint("timm.optim.lars.Lars", {"momentum": 0.5}, {"lr": 0.1, "weight_decay": 0.1, "eps": 0.1}),
    ],
    small_steps={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
)
