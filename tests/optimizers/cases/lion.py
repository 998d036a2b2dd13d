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
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}, lr=1e-3),
    },
    references=[
        Reference("lion_pytorch.Lion", _LION),
        Reference(
            "timm.optim.lion.Lion",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], caution=[False, True], maximize=[False, True]),
            without(foreach=False),
        ),
        Reference(
            "optimi.Lion",
            _LION
            + grid(lr=[1e-2], weight_decay=[0.0, 0.02], decouple_lr=[True])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            without(foreach=False, triton=False),
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "max_lr": -1e-3},
)
