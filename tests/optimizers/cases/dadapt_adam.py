from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

# Where d grows within a few steps of the tests' gradients, and eps, which d does not reach, makes no step depend on it.
_START = {"d0": 1e-3, "eps": 1e-14}

DADAPT_ADAM = Entry(
    "dadapt_adam",
    hfoptim.DAdaptAdam,
    variants={
        "plain": Variant(
            {**_START, "layer_scale": 2.0, "use_bias_correction": True}, lr=1.0, alone=False, linear=False
        ),
        "decoupled": Variant(
            {**_START, "weight_decay": 0.1, "decouple": True, "growth_rate": 1.5},
            lr=1.0,
            alone=False,
            linear=False,
            compiled=True,
        ),
    },
    references=[
        Reference(
            "dadaptation.DAdaptAdam",
            [
                *grid(d0=[1e-3], weight_decay=[0.0, 0.25], decouple=[True, False], use_bias_correction=[False, True]),
                {"lr": 1.0, "d0": 1e-3, "betas": (0.5, 0.9), "eps": 1e-3, "growth_rate": 1.02},
            ],
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "d0": -1e-6,
        "growth_rate": 0.9,
        "layer_scale": -1.0,
    },
    checkpoints=[Checkpoint("dadaptation.DAdaptAdam", {}, {"d0": 1e-3, "weight_decay": 0.1})],
    small_steps={"lr": 1.0, "d0": 1e-4, "growth_rate": 1.0, "weight_decay": 0.1},
)
