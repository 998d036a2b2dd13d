from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _theirs(options: Options) -> Options:
    theirs = {**options, "foreach": False}
    return theirs | ({"constant": theirs.pop("small_const")} if "small_const" in theirs else {})


ACCSGD = Entry(
    "accsgd",
    hfoptim.AccSGD,
    variants={"decay": Variant({"weight_decay": 0.1}, linear=False, compiled=True)},
    references=[
        Reference(
            "pytorch_optimizer.AccSGD",
            grid(lr=[1e-2], kappa=[1000.0, 20.0], xi=[10.0, 2.0], small_const=[0.7, 1.0], weight_decay=[0.0, 0.25]),
            _theirs,
        ),
    ],
    numbers={"lr": -1e-3, "kappa": -1.0, "xi": -1.0, "small_const": 1.5, "weight_decay": -0.1},
)
