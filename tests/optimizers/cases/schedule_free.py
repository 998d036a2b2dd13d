from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid


def _training(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """The package's optimizers begin in evaluation mode."""
    optimizer = peers.load(who)(list(params.values()), **options)
    optimizer.train()
    return optimizer


_RUNS = (
    grid(lr=[1e-2], weight_decay=[0.0, 0.25], warmup_steps=[0, 7])
    + grid(lr=[1e-2], betas=[b for b in BETAS if b[0] > 0.0], eps=[1e-8, 1e-2], r=[0.0, 1.5])
    + grid(lr=[1e-2], weight_lr_power=[0.0, 1.0], r=[0.5], warmup_steps=[20])
)

SCHEDULE_FREE = Entry(
    "adamw_schedule_free",
    hfoptim.AdamWScheduleFree,
    counted=False,
    variants={
        "decay": Variant({"weight_decay": 0.1, "warmup_steps": 3}, late=False, linear=False, compiled=True),
        "power": Variant({"r": 0.7, "weight_lr_power": 1.0, "betas": (0.95, 0.99)}, late=False, linear=False),
    },
    references=[
        Reference("schedulefree.AdamWScheduleFree", _RUNS, make=_training),
        Reference("schedulefree.AdamWScheduleFreeReference", _RUNS, make=_training),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "warmup_steps": -1, "r": -1.0, "weight_lr_power": -1.0},
    checkpoints=[
        Checkpoint(
            "schedulefree.AdamWScheduleFree",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "warmup_steps": 5, "r": 1.0},
        ),
    ],
    small_steps={"lr": 1e-3, "weight_decay": 0.1},  # y takes a tenth of a step
)

RADAM_SCHEDULE_FREE = Entry(
    "radam_schedule_free",
    hfoptim.RAdamScheduleFree,
    counted=False,
    variants={
        # Without the steps of SGD nothing moves in the first five.
        "decay": Variant(
            {"weight_decay": 0.1, "silent_sgd_phase": False, "betas": (0.9, 0.7)},
            late=False,
            linear=False,
            compiled=True,
        ),
        "sgd": Variant({"silent_sgd_phase": False, "betas": (0.95, 0.99), "r": 0.7}, late=False, linear=False),
    },
    references=[
        Reference(
            "schedulefree.RAdamScheduleFree",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], silent_sgd_phase=[True, False], betas=[(0.9, 0.999), (0.5, 0.9)])
            + grid(lr=[1e-2], eps=[1e-2], weight_lr_power=[0.0, 1.0], r=[0.5], silent_sgd_phase=[False]),
            make=_training,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "r": -1.0, "weight_lr_power": -1.0},
    checkpoints=[
        Checkpoint("schedulefree.RAdamScheduleFree", {}, {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.2}),
    ],
    small_steps={"lr": 3e-3, "weight_decay": 0.1, "silent_sgd_phase": False},
)

SGD_SCHEDULE_FREE = Entry(
    "sgd_schedule_free",
    hfoptim.SGDScheduleFree,
    counted=False,
    variants={
        "decay": Variant({"weight_decay": 0.1, "warmup_steps": 3, "r": 0.7}, late=False, linear=False, compiled=True),
    },
    references=[
        Reference(
            "schedulefree.SGDScheduleFree",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], warmup_steps=[0, 7], momentum=[0.9, 0.5])
            + grid(lr=[1e-2], weight_lr_power=[0.0, 1.0], r=[0.5]),
            make=_training,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": 1.0,
        "weight_decay": -0.1,
        "warmup_steps": -1,
        "r": -1.0,
        "weight_lr_power": -1.0,
    },
    checkpoints=[
        Checkpoint(
            "schedulefree.SGDScheduleFree",
            {},
            {"lr": 1e-2, "momentum": 0.8, "weight_decay": 0.2, "warmup_steps": 5, "r": 1.0},
        ),
    ],
    small_steps={"lr": 1e-3, "weight_decay": 0.1},
)
