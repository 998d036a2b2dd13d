from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid, without


def _po(options: Options) -> Options:
    return {"betas": (0.9, 0.99), "eps": 1e-6, **options, "kahan_sum": False, "foreach": False}


STABLE_ADAMW = Entry(
    "stable_adamw",
    hfoptim.StableAdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, complex=False, compiled=True),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}, complex=False),
    },
    references=[
        Reference(
            "optimi.StableAdamW",
            grid(lr=[1e-2], betas=BETAS, eps=[1e-6, 1e-2], weight_decay=[0.25])
            + grid(lr=[1e-2], betas=[(0.9, 0.99)], weight_decay=[0.02], decouple_lr=[True])
            + grid(lr=[1e-2], betas=[(0.9, 0.99)], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without(foreach=False, triton=False),
        ),
        Reference(
            "pytorch_optimizer.StableAdamW", grid(lr=[1e-2], weight_decay=[0.25, 0.0], maximize=[False, True]), _po
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0},
)
