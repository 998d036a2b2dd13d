from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Options, Reference, Variant, grid, without


def _legacy(options: Options) -> Options:
    renamed = {"momentum_decay": "schedule_decay"}
    return {renamed.get(name, name): value for name, value in options.items()}


_NADAM = grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25]) + grid(lr=[1e-2], eps=[1e-2], momentum_decay=[0.1])

NADAM = Entry(
    "nadam",
    hfoptim.NAdam,
    variants={
        "decoupled": Variant({"weight_decay": 0.1, "decoupled_weight_decay": True}, compiled=True),
        "l2": Variant({"weight_decay": 0.1, "maximize": True}),
    },
    references=[
        Reference("timm.optim.nadam.NAdamLegacy", _NADAM, _legacy),
        # torch carries the product of momenta in float32.
        Reference(
            "torch.optim.NAdam",
            grid(lr=[1e-2], weight_decay=[0.25], decoupled_weight_decay=[True, False], maximize=[False, True])
            + grid(lr=[1e-2], momentum_decay=[0.1], eps=[1e-2]),
            without(foreach=False),
            tolerance=1e-6,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "momentum_decay": -1e-3},
    checkpoints=[
        Checkpoint(
            "torch.optim.NAdam",
            {"decoupled_weight_decay": True},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "momentum_decay": 0.02},
            tolerance=1e-6,
        ),
    ],
)

NADAMW = Entry(
    "nadamw",
    hfoptim.NAdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
        "clipped": Variant({"clipping_threshold": 0.5}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.nadamw.NAdamW",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], eps=[1e-2], weight_decay=[0.25], maximize=[True], caution=[False, True])
            + grid(lr=[1e-2], weight_decay=[0.25], clipping_threshold=[0.5]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0, "clipping_threshold": -1.0},
    checkpoints=[
        Checkpoint(
            "timm.optim.nadamw.NAdamW", {}, {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2}
        ),
    ],
)
