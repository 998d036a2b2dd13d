from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Reference, Variant, grid

# Where d grows within a few steps of the tests' gradients, and eps, whose unit is d, makes no step depend on lr twice.
_START = {"lr": 1.0, "d0": 1e-2, "eps": 1e-14}

PRODIGY = Entry(
    "prodigy",
    hfoptim.Prodigy,
    variants={
        "decoupled": Variant({**_START, "d_coef": 10.0, "weight_decay": 0.1}, lr=1.0, alone=False, compiled=True),
        "plain": Variant({**_START, "d_coef": 20.0, "use_bias_correction": True}, lr=1.0, alone=False),
        "coupled": Variant(
            {**_START, "weight_decay": 0.1, "decouple": False, "betas": (0.0, 0.99)}, lr=1.0, alone=False
        ),
        "sliced": Variant(
            {**_START, "d_coef": 5.0, "slice_p": 3, "growth_rate": 1.5},
            lr=1.0,
            alone=False,
            complex=False,
            traceable=False,
        ),
    },
    references=[
        Reference(
            "prodigyopt.Prodigy",
            grid(lr=[1.0], d0=[1e-2], weight_decay=[0.0, 0.25], decouple=[True, False], safeguard_warmup=[False, True])
            + grid(lr=[1.0], d0=[1e-2], betas=[(0.9, 0.999), (0.0, 0.9)], beta3=[None, 0.9], d_coef=[1.0, 5.0])
            + grid(lr=[0.5], d0=[1e-3], use_bias_correction=[True], eps=[1e-8, 1e-2], d_coef=[5.0])
            + grid(lr=[1.0], d0=[1e-2], growth_rate=[1.02], slice_p=[1, 3], betas=[(0.9, 0.999), (0.0, 0.9)]),
        ),
        Reference("prodigyopt.Prodigy", [{"weight_decay": 0.1}], lr_moves=False),
    ],
    numbers={
        "lr": -1e-3,
        "beta3": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "d0": -1e-6,
        "d_coef": -1.0,
        "growth_rate": 0.9,
        "slice_p": 0,
    },
    checkpoints=[
        Checkpoint("prodigyopt.Prodigy", {}, {"lr": 1.0, "d0": 1e-2, "weight_decay": 0.1}),
        Checkpoint(
            "prodigyopt.Prodigy", {"slice_p": 3}, {"lr": 0.5, "d0": 1e-2, "slice_p": 3, "use_bias_correction": True}
        ),
    ],
    small_steps={
        "lr": 1.0,
        "d0": 1e-4,
        "d_coef": 0.0,
        "weight_decay": 0.1,
    },  # its estimate would follow the rounded parameters
)
