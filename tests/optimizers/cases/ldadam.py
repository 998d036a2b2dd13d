from __future__ import annotations

import functools
from typing import Any

import hfoptim
from cases.entry import Entry, Options, Reference, Variant
from cases.muon import TranscribedAndAdamW

_MATRICES = ("matrix", "wide", "narrow", "transposed", "gaps")
_REST = ("scalar", "one", "vector")


def _variant(**options: Any) -> Variant:
    given: Options = {"rank": 2, **options}
    return Variant(given, lr=1e-3, complex=False, alone=False, linear=False, traceable=False)


LDADAMW = Entry(
    "ldadamw",
    hfoptim.LDAdamW,
    variants={
        "feedback": _variant(weight_decay=0.1),
        "svd": _variant(proj_method="svd", proj_type="left", error_feedback=False),
    },
    references=[
        Reference(
            "transcriptions.LDAdamW",
            [
                {"lr": 1e-3, "rank": 2, "weight_decay": 0.1},
                {"lr": 1e-3, "rank": 3, "proj_type": "right", "error_feedback": False, "betas": (0.8, 0.9)},
                {"lr": 1e-3, "rank": 2, "proj_type": "reverse_std", "proj_method": "svd", "rho": 0.5, "eps": 1e-3},
            ],
            make=functools.partial(TranscribedAndAdamW, hfoptim.LDAdamW),
            layouts=(*_MATRICES, *_REST),
            # Where singular values are close, rounding turns the subspace.
            tolerance=1e-7,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "rank": 0,
        "rho": 1.0,
        "fallback_lr_scale": -1.0,
    },
    small_steps={"lr": 1e-4, "weight_decay": 0.1, "rank": 2},
)
