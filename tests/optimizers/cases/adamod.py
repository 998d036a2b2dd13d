from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid


def _po(options: Options) -> Options:
    """beta3 as the third of betas."""
    given = {"betas": (0.9, 0.999), "beta3": 0.999, **options}
    return {**given, "betas": (*given["betas"], given.pop("beta3")), "foreach": False}


ADAMOD = Entry(
    "adamod",
    hfoptim.AdaMod,
    variants={"decay": Variant({"weight_decay": 0.1, "beta3": 0.9}, linear=False, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.AdaMod",
            grid(lr=[1e-2], betas=BETAS, beta3=[0.5], weight_decay=[0.0, 0.25]) + grid(lr=[1e-2], eps=[1e-2]),
            _po,
        ),
    ],
    numbers={"lr": -1e-3, "beta3": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
