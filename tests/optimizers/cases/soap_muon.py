from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant
from cases.transcribed import transcription

SOAP_MUON = Entry(
    "soap_muon",
    hfoptim.SOAPMuon,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, "precondition_frequency": 2},
            lr=1e-3,
            complex=False,
            alone=False,
            traceable=False,
        )
    },
    references=[
        transcription(
            hfoptim.SOAPMuon,
            [
                {"lr": 1e-2, "precondition_frequency": 3, "weight_decay": 0.1},
                {
                    "lr": 1e-2,
                    "betas": (0.9, 0.9),
                    "shampoo_beta": 0.8,
                    "sqrt_correction": False,
                    "newton_schulz_steps": 8,
                    "eps": 1e-8,
                },
            ],
            layouts=("matrix", "wide", "narrow", "transposed", "gaps"),
            tolerance=1e-9,
        )
    ],
    numbers={
        "lr": -1e-3,
        "shampoo_beta": 1.0,
        "eps": -1e-8,
        "weight_decay": -0.1,
        "precondition_frequency": 0,
        "max_precond_dim": 0,
        "newton_schulz_steps": 0,
    },
)
