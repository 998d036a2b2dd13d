from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Entry, Reference, Variant, grid
from cases.transcribed import Transcribed


class AuthorsSRMM(Transcribed):
    """HanbaekLyu/SRMM, src/SRMM.py, with ilr = 1 / lr - pr, and with the memory that its documentation speaks of."""

    defaults_ = {"lr": 1e-2, "beta": 0.5, "memory_length": 100, "proximal": 0.0}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        t, length, pr = s["t"], o["memory_length"], o["proximal"]
        ilr = 1 / o["lr"] - pr
        w = (t + 1) ** -o["beta"] if length is None else (t % length + 1) ** -o["beta"]
        s["g"] = (1 - w) * s.get("g", 0.0) + w * g
        s["p"] = (1 - w) * s.get("p", 0.0) + w * p
        w2 = pr / (ilr + pr)
        return (1 - w2) * s["p"] + w2 * p - s["g"] / (ilr + pr)


SRMM = Entry(
    "srmm",
    hfoptim.SRMM,
    variants={"proximal": Variant({"proximal": 10.0, "weight_decay": 0.1}, linear=False, compiled=True)},
    references=[
        Reference(
            "cases.srmm.AuthorsSRMM",
            grid(lr=[1e-2], beta=[0.3, 0.5], memory_length=[7, None])
            + grid(lr=[1e-2], proximal=[30.0], memory_length=[100]),
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.5, "memory_length": 0, "proximal": -1.0, "weight_decay": -0.1},
)
