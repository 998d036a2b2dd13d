from __future__ import annotations

import functools

import hfoptim
from cases.entry import Entry, Reference, Variant
from cases.muon import TranscribedAndAdamW

# Coefficients by which singular values rise to 1, so that the product rises with the multiplier.
_RISING = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 8, "safety_factor": 1.0, "eps": 1e-16}
_MAKE = functools.partial(TranscribedAndAdamW, hfoptim.SpectralSphere)

SPECTRAL_SPHERE = Entry(
    "spectralsphere",
    hfoptim.SpectralSphere,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, "solver_max_iter": 2, "ns_steps": 5},
            lr=1e-3,
            complex=False,
            alone=False,
            linear=False,
            traceable=False,
        )
    },
    references=[
        Reference(
            "transcriptions.SpectralSphere",
            [{"lr": 1e-2, "solver_max_iter": 30, "solver_tol": 0.0, "weight_decay": 0.1, **_RISING}],
            make=_MAKE,
            layouts=("matrix", "transposed", "vector"),
            tolerance=1e-9,
        ),
        Reference(
            "transcriptions.SpectralSphere",
            [
                {
                    "lr": 1e-2,
                    "solver_max_iter": 0,
                    "radius_scaler": 2.0,
                    "power_iter_steps": 3,
                    "momentum": 0.5,
                    "nesterov": False,
                    **_RISING,
                }
            ],
            make=_MAKE,
            layouts=("matrix", "wide", "gaps", "vector"),
            tolerance=1e-9,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": 1.0,
        "radius_scaler": -1.0,
        "power_iter_steps": 0,
        "ns_steps": 0,
        "solver_tol": -1e-6,
        "solver_max_iter": -1,
        "weight_decay": -0.1,
        "eps": -1e-8,
        "fallback_lr_scale": -1.0,
        "safety_factor": -1.0,
    },
)
