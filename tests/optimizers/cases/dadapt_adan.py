from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

# Where d grows within a few steps of the tests' gradients, and eps, which d does not reach, makes no step depend on it.
_START = {"d0": 1e-3, "eps": 1e-14}

DADAPT_ADAN = Entry(
    "dadapt_adan",
    hfoptim.DAdaptAdan,
    variants={
        "proximal": Variant({**_START, "weight_decay": 0.1}, lr=1.0, alone=False, linear=False),
        "decay": Variant(
            {**_START, "weight_decay": 0.1, "no_prox": True, "growth_rate": 1.5},
            lr=1.0,
            alone=False,
            linear=False,
            compiled=True,
        ),
    },
    references=[
        Reference(
            "dadaptation.DAdaptAdan",
            [
                *grid(d0=[1e-3], weight_decay=[0.0, 0.25], no_prox=[False, True]),
                {"lr": 1.0, "d0": 1e-3, "betas": (0.5, 0.9, 0.8), "eps": 1e-3, "growth_rate": 1.02},
            ],
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "d0": -1e-6, "growth_rate": 0.9},
    checkpoints=[Checkpoint("dadaptation.DAdaptAdan", {}, {"d0": 1e-3, "weight_decay": 0.1})],
    small_steps={"lr": 1.0, "d0": 1e-4, "growth_rate": 1.0, "weight_decay": 0.1},
)
