from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without
from cases.repaired import without_root_eps
from cases.transcribed import transcription


def _po(options: Options) -> Options:
    return without("decoupled", weight_decouple=options.get("decoupled", True), foreach=False)(options)


PNM = Entry(
    "pnm",
    hfoptim.PNM,
    variants={"decay": Variant({"weight_decay": 0.1}, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.PNM",
            grid(lr=[1e-2], betas=[(0.9, 1.0), (0.5, 0.5), (0.0, 0.0)], weight_decay=[0.25], decoupled=[True, False]),
            _po,
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)


ADAPNM = Entry(
    "adapnm",
    hfoptim.AdaPNM,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "amsgrad": False, "decoupled": False}),
    },
    references=[
        transcription(
            hfoptim.AdaPNM,
            grid(lr=[1e-2], betas=[(0.9, 0.999, 1.0), (0.5, 0.0, 2.5)], weight_decay=[0.25], decoupled=[True, False])
            + grid(lr=[1e-2], amsgrad=[False], eps=[1e-2]),
        ),
        # It adds eps elsewhere; of this size, where does not matter.
        Reference(
            "pytorch_optimizer.AdaPNM",
            grid(lr=[1e-2], amsgrad=[False], eps=[1e-20], weight_decay=[0.25]),
            without("amsgrad", ams_bound=False),
            make=without_root_eps,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
