from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

DADAPT_LION = Entry(
    "dadapt_lion",
    hfoptim.DAdaptLion,
    counted=False,
    variants={"decay": Variant({"d0": 1e-3, "weight_decay": 0.1}, lr=1.0, alone=False, compiled=True)},
    references=[
        Reference(
            "dadaptation.DAdaptLion",
            grid(lr=[1.0], d0=[1e-3], weight_decay=[0.0, 0.25], betas=[(0.9, 0.99), (0.5, 0.5)]),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "d0": -1e-6},
    checkpoints=[Checkpoint("dadaptation.DAdaptLion", {}, {"d0": 1e-3, "weight_decay": 0.1})],
    # With gradients that do not go by the weights the distance grows without end, unless it is as good as known.
    small_steps={"lr": 1e-3, "d0": 0.05, "weight_decay": 0.1},
)
