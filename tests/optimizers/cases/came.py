from __future__ import annotations

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _pytorch_optimizer(options: Options) -> Options:
    eps1, eps2 = options.get("eps", (1e-30, 1e-16))
    return {name: value for name, value in options.items() if name != "eps"} | {"eps1": eps1, "eps2": eps2}


CAME = Entry(
    "came",
    hfoptim.CAME,
    variants={
        "decay": Variant(
            {"weight_decay": 0.1}, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")
        ),
    },
    references=[
        Reference(
            "pytorch_optimizer.CAME",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], betas=[(0.9, 0.999, 0.9999), (0.5, 0.9, 0.0)])
            + grid(lr=[1e-2], clip_threshold=[0.3], eps=[(1e-2, 1e-3)], betas=[(0.0, 0.9, 0.9)]),
            _pytorch_optimizer,
        ),
    ],
    numbers={"lr": -1e-3, "clip_threshold": -1.0, "weight_decay": -0.1},
)
