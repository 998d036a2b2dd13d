from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant
from cases.soap import FULL_RANK
from cases.transcribed import transcription

_RUNS = [
    {"lr": 1e-2, "precondition_frequency": 3},
    {"lr": 1e-2, "precondition_frequency": 1, "init_factor": 1e-3, "max_clamp_value": 11, "weight_decay": 0.0},
    {"lr": 1e-2, "betas": (0.5, 0.7), "shampoo_beta": 0.9, "eps": 1e-3, "weight_decay": 0.1, "max_precond_dim": 4},
]
_NUMBERS = {
    "lr": -1e-3,
    "shampoo_beta": 1.0,
    "eps": -1e-8,
    "weight_decay": -0.1,
    "precondition_frequency": 0,
    "init_factor": -0.1,
    "max_clamp_value": 0,
    "max_precond_dim": 0,
}
# How a product is rounded depends on where its matrices lie in memory, and so on what is stacked with them.
_ALIKE = {"complex": False, "alone": False, "traceable": False}

KL_SHAMPOO = Entry(
    "klshampoo",
    hfoptim.KLShampoo,
    variants={"default": Variant({"precondition_frequency": 2, "weight_decay": 0.1}, **_ALIKE)},
    references=[transcription(hfoptim.KLShampoo, _RUNS, layouts=FULL_RANK)],
    numbers=_NUMBERS,
    small_steps={"lr": 1e-5},
)

KL_SOAP = Entry(
    "klsoap",
    hfoptim.KLSOAP,
    variants={"one_factor": Variant({"precondition_frequency": 2, "max_precond_dim": 4}, **_ALIKE)},
    references=[transcription(hfoptim.KLSOAP, _RUNS, layouts=FULL_RANK)],
    numbers=_NUMBERS,
    small_steps={"lr": 1e-5},
)
