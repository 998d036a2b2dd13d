from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant
from cases.muon import TranscribedAndAdamW
from hfoptim.engine import storage

_MATRICES = ("matrix", "wide", "narrow", "transposed", "gaps")
_REST = ("scalar", "one", "vector")


class _Peer(TranscribedAndAdamW):
    """The transcription with the numbers that the engine draws."""

    def __init__(self, who: str, params: dict[str, Tensor], options: Options) -> None:
        super().__init__(hfoptim.Alice, who, params, options)
        places = {name: place for place, name in enumerate(params)}
        peer: Any = self.parts[0]
        peer.written.draw = lambda t, name, count: storage.normal(
            (count,), storage.drawing_seed(t, places[name]), torch.float64, torch.device("cpu")
        ).numpy()


def _variant(**options: Any) -> Variant:
    given: Options = {"rank": 2, "leading": 1, "update_proj_gap": 3, **options}
    return Variant(given, lr=1e-3, complex=False, alone=False, traceable=False)


ALICE = Entry(
    "alice",
    hfoptim.Alice,
    variants={
        "tracking": _variant(weight_decay=0.1),
        "alice_0": _variant(low_rank_betas=(0.9, 0.9, 0.0), proj_type="left"),
    },
    references=[
        Reference(
            "transcriptions.Alice",
            [
                {"lr": 1e-3, "rank": 2, "leading": 1, "update_proj_gap": 4, "weight_decay": 0.1},
                {"lr": 1e-3, "rank": 2, "leading": 1, "update_proj_gap": 7, "low_rank_betas": (0.8, 0.95, 0.0)},
                {
                    **{"lr": 1e-3, "rank": 3, "leading": 2, "update_proj_gap": 5, "proj_type": "left", "alpha": 0.7},
                    **{"alpha_c": 0.2, "gamma": 1.1, "eps": 1e-3, "low_rank_betas": (0.9, 0.9, 0.9)},
                },
                {"lr": 1e-3, "rank": 2, "leading": 9, "proj_type": "right"},
            ],
            make=_Peer,
            layouts=(*_MATRICES, *_REST),
            # Where eigenvalues are close, rounding turns the subspace.
            tolerance=1e-7,
        ),
    ],
    numbers={
        **{"lr": -1e-3, "alpha": -0.1, "alpha_c": -0.1, "update_proj_gap": 0, "rank": 0, "gamma": -1.0, "leading": 0},
        **{"weight_decay": -0.1, "eps": -1e-8, "fallback_lr_scale": -1.0},
    },
    small_steps={"lr": 1e-4, "weight_decay": 0.1, "rank": 2},
)
