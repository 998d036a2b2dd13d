from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without


def _po(options: Options) -> Options:
    return without("decoupled", weight_decouple=options["decoupled"], foreach=False)(options)


_ADAI = grid(lr=[1e-2], betas=[(0.1, 0.99), (0.5, 0.0)], weight_decay=[0.25], decoupled=[False, True]) + grid(
    lr=[1e-2], eps=[0.1], decoupled=[False]
)

ADAI = Entry(
    "adai",
    hfoptim.Adai,
    variants={"l2": Variant({"weight_decay": 0.1}, alone=False, compiled=True)},
    references=[Reference("pytorch_optimizer.Adai", _ADAI, _po)],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)

ADAIV2 = Entry(
    "adaiv2",
    hfoptim.AdaiV2,
    variants={
        "damped": Variant({"weight_decay": 0.1, "dampening": 0.5}, alone=False, compiled=True),
        "decay": Variant({"weight_decay": 0.1}, alone=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.Adai",
            [{**o, "dampening": d} for o, d in zip(_ADAI, (0.9, 0.0, 0.5, 1.0, 0.3), strict=True)],
            _po,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "dampening": 1.5},
)
