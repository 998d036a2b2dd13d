from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

TORCH_ADAFACTOR = Entry(
    "adafactor_torch",
    hfoptim.TorchAdafactor,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")
        ),
    },
    references=[
        Reference(
            "torch.optim.Adafactor",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], maximize=[False, True])
            + grid(lr=[0.5], beta2_decay=[-0.3], eps=[(1e-3, 0.5)], d=[2.0], weight_decay=[0.1]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "beta2_decay": 0.1, "d": 0.5, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint("torch.optim.Adafactor", {}, {"lr": 1e-2, "beta2_decay": -0.5, "d": 1.5, "weight_decay": 0.1}),
    ],
)
