from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

SGD = Entry(
    "sgd",
    hfoptim.SGD,
    counted=False,
    variants={
        "momentum": Variant({"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        "plain": Variant({"lr": 1e-2}),
        "decoupled": Variant({"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "decouple_wd": True}),
        "fully_decoupled": Variant({"lr": 1e-2, "weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
        "nesterov": Variant({"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, compiled=True),
    },
    references=[
        Reference(
            "torch.optim.SGD",
            grid(lr=[1e-2], momentum=[0.0, 0.9], dampening=[0.0, 0.4], weight_decay=[0.0, 0.25], maximize=[False, True])
            + grid(lr=[1e-2], momentum=[0.5, 0.9], nesterov=[True], weight_decay=[0.0, 0.25], maximize=[False, True]),
            without(foreach=False),
        ),
        Reference(
            "optimi.SGD",
            grid(lr=[1e-2], momentum=[0.0, 0.9], weight_decay=[0.25], decouple_wd=[True])
            + grid(lr=[1e-2], momentum=[0.0, 0.9], weight_decay=[0.0, 0.02], decouple_lr=[True])
            + grid(lr=[1e-2], momentum=[0.9], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without(foreach=False, triton=False),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "dampening": -0.1, "weight_decay": -0.1, "max_lr": -1e-3},
    checkpoints=[
        Checkpoint(
            "torch.optim.SGD",
            {},
            {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        ),
        Checkpoint("torch.optim.SGD", {}, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        Checkpoint("torch.optim.SGD", {"momentum": 0.5}, {"lr": 1e-2, "weight_decay": 0.1}),
    ],
    small_steps={"lr": 1e-4, "momentum": 0.9},
)
