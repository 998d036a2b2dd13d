from __future__ import annotations

from told import by_closure, told

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.repaired import norm_in_double


def _max_lr(options: Options) -> Options:
    out = {name: value for name, value in options.items() if name not in ("lr", "eps")}
    return {**out, "max_lr": options["lr"]}


ALIG = Entry(
    "alig",
    told(hfoptim.AliG),
    variants={
        "momentum": Variant({"momentum": 0.9, "weight_decay": 0.1}, lr=1e-2, alone=False, compiled=True, linear=False),
        "plain": Variant({"lr": 10.0}, lr=10.0, alone=False, linear=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.AliG",
            grid(lr=[1e-2, 0.3], eps=[1e-6], momentum=[0.0, 0.9])
            + grid(lr=[0.3, 1e-2], eps=[1e-6], momentum=[0.5], adjusted_momentum=[True]),
            _max_lr,
            make=by_closure(norm_in_double),
            lr_moves=False,
        ),
    ],
    numbers={"lr": -1e-3, "momentum": 1.0, "eps": -1e-8, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "weight_decay": 0.1},
)
