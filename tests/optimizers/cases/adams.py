from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _po(options: Options) -> Options:
    renamed = {"amsgrad": "ams_bound"}
    return {**{renamed.get(name, name): value for name, value in options.items()}, "foreach": False}


ADAMS = Entry(
    "adams",
    hfoptim.AdamS,
    variants={
        "decay": Variant({"weight_decay": 0.1}, alone=False, compiled=True),
        "amsgrad": Variant({"weight_decay": 0.1, "amsgrad": True}, alone=False),
    },
    references=[
        # It adds eps to the root of the mean; of this size it makes no difference.
        Reference(
            "pytorch_optimizer.AdamS",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.0)], eps=[1e-30], weight_decay=[0.25], amsgrad=[False, True])
            + grid(lr=[1e-2], eps=[1e-30], weight_decay=[0.25], maximize=[True]),
            _po,
        ),
        Reference("pytorch_optimizer.AdamS", grid(lr=[1e-2], eps=[1e-8], weight_decay=[0.25]), _po, tolerance=1e-7),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
