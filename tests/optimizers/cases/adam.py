from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Checkpoint, Entry, Reference, Variant, grid, without

ADAMW = Entry(
    "adamw_hf",
    hfoptim.AdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "no_correction": Variant({"correct_bias": False, "lr": 1e-2}),
        "caution": Variant({"caution": True, "weight_decay": 0.1}, complex=False),
        "amsgrad": Variant({"amsgrad": True, "weight_decay": 0.1}),
    },
    references=[
        Reference(
            "galore_torch.adamw.AdamW",
            grid(lr=[1e-2], betas=BETAS, eps=[1e-6, 1e-2], weight_decay=[0.0, 0.25], correct_bias=[True, False]),
            without(no_deprecation_warning=True),
        ),
        Reference(
            "torch.optim.AdamW",
            grid(lr=[1e-2], eps=[1e-30], amsgrad=[True], maximize=[True, False]),
            without(foreach=False, weight_decay=0.0),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "optimi.AdamW",
            grid(lr=[1e-2], betas=[(0.9, 0.99)], eps=[1e-30], weight_decay=[0.02], decouple_lr=[True])
            + grid(lr=[1e-2], betas=[(0.9, 0.99)], eps=[1e-30], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without(foreach=False, triton=False),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0},
    checkpoints=[
        Checkpoint(
            "galore_torch.adamw.AdamW",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "no_deprecation_warning": True},
        ),
        Checkpoint(
            "galore_torch.adamw.AdamW",
            {},
            {"lr": 1e-2, "weight_decay": 0.2, "correct_bias": False, "no_deprecation_warning": True},
        ),
        # torch adds eps elsewhere and decays before the update: the same numbers without both.
        Checkpoint("torch.optim.AdamW", {}, {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 0.0, "weight_decay": 0.0}),
        Checkpoint("torch.optim.AdamW", {}, {"lr": 1e-2, "amsgrad": True, "eps": 0.0, "weight_decay": 0.0}),
    ],
)

_TORCH_ADAM = grid(lr=[1e-2], betas=BETAS, eps=[1e-8, 1e-2], weight_decay=[0.0, 0.25]) + grid(
    lr=[1e-2], betas=[(0.9, 0.999)], eps=[1e-8], weight_decay=[0.0, 0.25], maximize=[True], amsgrad=[False, True]
)

ADAM = Entry(
    "adam",
    hfoptim.Adam,
    variants={
        "l2": Variant({"weight_decay": 0.1}),
        "decoupled": Variant({"weight_decay": 0.1, "decouple_wd": True}, compiled=True),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
        "maximize": Variant({"weight_decay": 0.1, "maximize": True}),
        "amsgrad": Variant({"weight_decay": 0.1, "amsgrad": True}),
        "caution": Variant({"caution": True}, complex=False, compiled=True, layouts=("matrix", "large")),
        "clipped": Variant({"clipping_threshold": 0.5}, complex=False),
    },
    references=[
        Reference("torch.optim.Adam", _TORCH_ADAM, without(foreach=False)),
        Reference(
            "torch.optim.AdamW",
            [{**o, "decouple_wd": True} for o in _TORCH_ADAM],
            without("decouple_wd", foreach=False),
        ),
        Reference(
            "optimi.Adam",
            grid(lr=[1e-2], betas=[(0.9, 0.99), (0.5, 0.9)], eps=[1e-6, 1e-2], weight_decay=[0.0, 0.2])
            + grid(lr=[1e-2], weight_decay=[0.2], decouple_wd=[True, False])
            + grid(lr=[1e-2], weight_decay=[0.0, 0.02], decouple_lr=[True], decouple_wd=[True, False])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without(foreach=False, triton=False),
        ),
        Reference(
            "timm.optim.adamw.AdamWLegacy",
            grid(
                lr=[1e-2],
                caution=[True],
                decouple_wd=[True],
                eps=[1e-8],
                weight_decay=[0.0, 0.25],
                maximize=[True, False],
            )
            + grid(
                lr=[1e-2],
                decouple_wd=[True],
                eps=[1e-8, 1e-2],
                weight_decay=[0.25],
                amsgrad=[False, True],
                clipping_threshold=[0.5],
            ),
            without("decouple_wd", foreach=False, betas=(0.9, 0.99)),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0, "clipping_threshold": -1.0},
    checkpoints=[
        Checkpoint(
            "torch.optim.Adam",
            {"betas": (0.9, 0.9)},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
        ),
        Checkpoint(
            "torch.optim.AdamW",
            {"decouple_wd": True},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
        ),
        Checkpoint("torch.optim.Adam", {}, {"lr": 1e-2, "maximize": True, "amsgrad": True}),
    ],
    small_steps={"lr": 1e-4, "weight_decay": 0.1, "decouple_wd": True},
)
