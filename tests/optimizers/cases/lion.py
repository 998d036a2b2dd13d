from __future__ import annotations

import hfoptim
from cases.entry import Entry, Reference, Variant, grid, without

_LION = grid(lr=[1e-2], betas=[(0.9, 0.99), (0.5, 0.0), (0.0, 0.9)], weight_decay=[0.0, 0.25])

LION = Entry(
    "lion",
    hfoptim.Lion,
    variants={
        "decay": Variant({"weight_decay": 0.1}, lr=1e-3, compiled=True),
        "caution": Variant({"caution": True}, lr=1e-3, complex=False),
    },
    references=[
        Reference("lion_pytorch.Lion", _LION),
        Reference(
            "timm.optim.lion.Lion",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], caution=[False, True], maximize=[False, True]),
            without(foreach=False),
        ),
        Reference("optimi.Lion", _LION, without(decouple_lr=False, foreach=False, triton=False)),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)
