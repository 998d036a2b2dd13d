from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _pytorch_optimizer(options: Options) -> Options:
    out = {name: value for name, value in options.items() if name not in ("decouple_lr", "max_lr")}
    return {**out, "weight_decouple": True, "wd_schedule": options.get("max_lr", False)}


ROSE = Entry(
    "rose",
    hfoptim.ROSE,
    variants={
        "stable": Variant(
            {"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")
        ),
        "plain": Variant({"centralize": False, "stabilize": False}, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.ROSE",
            grid(lr=[1e-2], weight_decay=[0.25], centralize=[True, False], stabilize=[True, False])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            _pytorch_optimizer,
        ),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1, "max_lr": -1e-3},
)
