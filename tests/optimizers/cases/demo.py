from __future__ import annotations

import hfoptim
from cases.entry import Entry, Variant
from cases.transcribed import transcription

DEMO = Entry(
    "demo",
    hfoptim.DeMo,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1, "compression_chunk": 8, "compression_topk": 3},
            lr=1e-3,
            complex=False,
            alone=False,
            linear=False,
            traceable=False,
        )
    },
    references=[
        transcription(
            hfoptim.DeMo,
            [
                {"lr": 1e-2, "compression_chunk": 2, "compression_topk": 2, "weight_decay": 0.1},
                {"lr": 1e-2, "compression_chunk": 4, "compression_topk": 1, "compression_decay": 0.9},
            ],
            layouts=("scalar", "one", "vector", "matrix", "row", "column", "conv", "transposed", "gaps", "narrow"),
        )
    ],
    numbers={
        "lr": -1e-3,
        "compression_decay": 1.0,
        "compression_topk": 0,
        "compression_chunk": 0,
        "weight_decay": -0.1,
    },
)
