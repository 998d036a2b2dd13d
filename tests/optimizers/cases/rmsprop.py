from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid, without

_RUNS = grid(lr=[1e-2], momentum=[0.0, 0.9], centered=[False, True], weight_decay=[0.0, 0.25])

RMSPROP = Entry(
    "rmsprop",
    hfoptim.RMSprop,
    variants={
        "momentum": Variant({"momentum": 0.9, "weight_decay": 0.1}, compiled=True),
        "centered": Variant({"centered": True}),
    },
    references=[
        Reference(
            "torch.optim.RMSprop",
            _RUNS + grid(lr=[1e-2], alpha=[0.5], eps=[1e-3], momentum=[0.9], maximize=[False, True]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "alpha": 1.5, "eps": -1e-8, "weight_decay": -0.1, "momentum": -0.1},
    checkpoints=[
        Checkpoint("torch.optim.RMSprop", {}, {"lr": 1e-2, "alpha": 0.9, "momentum": 0.8, "centered": True}),
        Checkpoint("torch.optim.RMSprop", {"momentum": 0.5}, {"lr": 1e-2, "eps": 1e-4, "weight_decay": 0.2}),
    ],
)

RMSPROP_TF = Entry(
    "rmsproptf",
    hfoptim.RMSpropTF,
    variants={
        "momentum": Variant({"momentum": 0.9, "weight_decay": 0.1}, compiled=True, linear=False),
        "centered": Variant({"centered": True, "weight_decay": 0.1, "decoupled_decay": True}),
        "torch_momentum": Variant({"momentum": 0.9, "lr_in_momentum": False}),
    },
    references=[
        Reference(
            "timm.optim.rmsprop_tf.RMSpropTF",
            _RUNS
            + grid(lr=[1e-2], momentum=[0.9], lr_in_momentum=[False, True], decoupled_decay=[True], weight_decay=[0.25])
            + grid(lr=[1e-2], momentum=[0.9], lr_in_momentum=[False, True], caution=[True], weight_decay=[0.25])
            + grid(lr=[1e-2], alpha=[0.5], eps=[1e-3], momentum=[0.5]),
            without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "alpha": 1.5, "eps": -1e-8, "weight_decay": -0.1, "momentum": -0.1},
    checkpoints=[
        Checkpoint(
            "timm.optim.rmsprop_tf.RMSpropTF", {}, {"lr": 1e-2, "alpha": 0.8, "momentum": 0.8, "centered": True}
        ),
        Checkpoint("timm.optim.rmsprop_tf.RMSpropTF", {}, {"lr": 1e-2, "weight_decay": 0.2, "decoupled_decay": True}),
    ],
)
