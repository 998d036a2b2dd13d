from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant, grid
from cases.transcribed import transcription

# Where d grows within a few steps of the tests' gradients, and eps, whose unit is d, makes no step depend on lr twice.
_START = {"lr": 1.0, "d0": 1e-2, "eps": 1e-14}
_LAYOUT = {"lr": 1.0, "alone": False, "linear": False, "complex": False, "traceable": False}

PRODIGY_PLUS = Entry(
    "prodigy_plus_schedule_free",
    hfoptim.ProdigyPlusScheduleFree,
    counted=False,
    variants={
        "plain": Variant({**_START, "weight_decay": 0.1, "d_coef": 5.0}, **_LAYOUT),
        "whole": Variant(
            {
                **_START,
                "factored": False,
                "slice_p": 1,
                "split_groups": False,
                "schedulefree_c": 6.0,
                "weight_decay": 1e-3,
                "weight_decay_by_lr": False,
                "d_limiter": False,
            },
            lr=1.0,
            alone=False,
            linear=False,
            complex=False,
        ),
    },
    references=[
        transcription(
            hfoptim.ProdigyPlusScheduleFree,
            grid(lr=[1.0], d0=[1e-2], weight_decay=[0.1], eps=[1e-8, None], slice_p=[1, 11], factored=[True])
            + grid(lr=[1.0], d0=[1e-2], d_limiter=[False], d_coef=[3.0], factored=[False], use_stableadamw=[False])
            + grid(lr=[1.0], d0=[1e-2], use_bias_correction=[True], schedulefree_c=[6.0], weight_decay_by_lr=[False])
            + grid(lr=[0.5], d0=[1e-3], betas=[(0.95, 0.9)], beta3=[0.9], prodigy_steps=[20], d_coef=[5.0]),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "beta3": 1.0,
        "weight_decay": -0.1,
        "d0": -1e-6,
        "d_coef": -1.0,
        "prodigy_steps": -1,
        "schedulefree_c": -1.0,
        "eps": -1e-8,
        "slice_p": 0,
    },
    small_steps={"lr": 1.0, "d0": 1e-3, "d_coef": 0.0, "weight_decay": 0.1},  # y takes a tenth of a step
)
