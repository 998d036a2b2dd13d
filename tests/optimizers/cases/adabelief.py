from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid, without

_DECAY = [
    {"weight_decay": 0.25, "rectify": False},
    {"weight_decay": 0.25, "fixed_decay": True, "rectify": True, "amsgrad": True},
    {"weight_decay": 0.25, "decoupled_decay": False, "rectify": True, "degenerated_to_sgd": False},
]


def _po(options: Options) -> Options:
    """The options by their names in pytorch_optimizer."""
    given = without("amsgrad", "decoupled_decay", foreach=False)(options)
    return {
        **given,
        "ams_bound": options.get("amsgrad", False),
        "weight_decouple": options.get("decoupled_decay", True),
    }


ADABELIEF = Entry(
    "adabelief",
    hfoptim.AdaBelief,
    variants={
        "decay": Variant({"weight_decay": 0.1, "rectify": False}),
        "rectified": Variant({"weight_decay": 0.1, "betas": (0.9, 0.99)}, compiled=True),
        "amsgrad": Variant({"amsgrad": True, "rectify": False, "decoupled_decay": False, "weight_decay": 0.1}),
    },
    references=[
        Reference(
            "timm.optim.adabelief.AdaBelief",
            [{**options, "lr": 1e-2} for options in _DECAY]
            + grid(lr=[1e-2], betas=BETAS, eps=[1e-16, 1e-4], rectify=[True, False])
            + grid(lr=[1e-2], amsgrad=[True], rectify=[False], eps=[1e-8]),
            without(foreach=False),
        ),
        Reference("pytorch_optimizer.AdaBelief", [{**options, "lr": 1e-2} for options in _DECAY[::2]], _po),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint(
            "timm.optim.adabelief.AdaBelief",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "amsgrad": True, "rectify": False},
        ),
        Checkpoint("timm.optim.adabelief.AdaBelief", {}, {"lr": 1e-2, "weight_decay": 0.2, "fixed_decay": True}),
    ],
)
