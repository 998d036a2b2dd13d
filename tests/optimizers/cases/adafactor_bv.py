from __future__ import annotations

import torch

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _timm(options: Options) -> Options:
    """timm's, with the momentum in double precision where ours is not in bfloat16."""
    narrow = options.get("momentum_dtype") == "bfloat16"
    return {**options, "momentum_dtype": torch.bfloat16 if narrow else torch.float64}


_LAYOUTS = ("scalar", "one", "vector", "matrix", "wide", "narrow", "conv", "conv_wide", "stack", "transposed", "gaps")
_BASE = {"lr": [1e-2], "min_dim_size_to_factor": [4], "momentum_dtype": ["float32"]}

ADAFACTOR_BIG_VISION = Entry(
    "adafactorbv",
    hfoptim.AdafactorBigVision,
    variants={
        "factored": Variant(
            {"min_dim_size_to_factor": 3, "weight_decay": 0.1, "clipping_threshold": 1.0},
            complex=False,
            compiled=True,
            layouts=("vector", "matrix", "row", "large"),
        ),
        "whole": Variant({"momentum": None, "weight_decay": 0.1}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.adafactor_bv.AdafactorBigVision",
            grid(**_BASE, momentum=[0.9, None], weight_decay=[0.1], clipping_threshold=[None, 1.0], caution=[False])
            + grid(**_BASE, corrected_weight_decay=[True], unscaled_wd=[False, True], weight_decay=[0.1])
            + grid(**_BASE, unscaled_wd=[True], weight_decay=[1e-3], decay_offset=[3], decay_rate=[0.5])
            + grid(**_BASE, beta2_cap=[0.9], eps=[1e-2], caution=[True], momentum=[0.5]),
            _timm,
            layouts=_LAYOUTS,
        ),
        # timm steps by the rounded momentum.
        Reference(
            "timm.optim.adafactor_bv.AdafactorBigVision",
            grid(lr=[1e-2], min_dim_size_to_factor=[16], momentum_dtype=["bfloat16"]),
            _timm,
            dtype=torch.float32,
            layouts=("vector", "matrix", "wide"),
            tolerance=2e-2,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "min_dim_size_to_factor": -1,
        "decay_rate": -0.1,
        "decay_offset": -1,
        "beta2_cap": 1.0,
        "momentum": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "clipping_threshold": -1.0,
    },
)
