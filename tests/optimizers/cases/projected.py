from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid, without


def _timm(options: Options) -> Options:
    """timm's caution is that of the momentum."""
    return {**options, "caution": bool(options.get("caution"))}


# Rows of a few entries are often orthogonal enough for delta 1, and for 1e-6 never.
_PROJECTION = [{}, {"delta": 1.0}, {"delta": 0.6, "wd_ratio": 0.5}, {"delta": 1e-6}]
_WALKABLE = ("vector", "matrix", "row", "column", "large")
_LIKELY = {"delta": 1.0, "wd_ratio": 0.5}

ADAMP = Entry(
    "adamp",
    hfoptim.AdamP,
    variants={
        "projected": Variant({**_LIKELY, "weight_decay": 0.1}, complex=False, compiled=True, layouts=_WALKABLE),
        "nesterov": Variant({**_LIKELY, "nesterov": True}, complex=False),
        "caution": Variant({**_LIKELY, "nesterov": True, "caution": "momentum"}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.adamp.AdamP",
            [{"lr": 1e-2, "weight_decay": 0.25, "nesterov": n, **each} for n in (False, True) for each in _PROJECTION]
            + grid(lr=[1e-2], betas=[(0.5, 0.0), (0.0, 0.9)], eps=[1e-8, 1e-2], delta=[0.8])
            + grid(lr=[1e-2], caution=["momentum"], delta=[1.0, 1e-6], nesterov=[False, True]),
            _timm,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "delta": -0.1, "wd_ratio": -0.1},
    checkpoints=[
        Checkpoint("timm.optim.adamp.AdamP", {}, {"lr": 1e-2, "betas": (0.8, 0.99), "weight_decay": 0.2, **_LIKELY}),
    ],
)

SGDP = Entry(
    "sgdp",
    hfoptim.SGDP,
    counted=False,
    variants={
        "projected": Variant(
            {**_LIKELY, "momentum": 0.9, "weight_decay": 0.01}, complex=False, compiled=True, layouts=_WALKABLE
        ),
        "nesterov": Variant({**_LIKELY, "momentum": 0.9, "nesterov": True, "dampening": 0.2}, complex=False),
        "caution": Variant({**_LIKELY, "momentum": 0.9, "caution": "momentum"}, complex=False),
    },
    references=[
        Reference(
            "timm.optim.sgdp.SGDP",
            [
                {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.5, "nesterov": n, **each}
                for n in (False, True)
                for each in _PROJECTION
            ]
            + grid(lr=[1e-2], momentum=[0.0, 0.9], dampening=[0.3], delta=[0.8])
            + grid(lr=[1e-2], caution=["momentum"], delta=[1.0, 1e-6], momentum=[0.9]),
            _timm,
        ),
        Reference(
            "pytorch_optimizer.SGDP",
            grid(lr=[1e-2], momentum=[0.9], nesterov=[False, True], delta=[1.0]),
            without(foreach=False),
            layouts=("scalar", "vector", "matrix", "row", "column", "conv"),
        ),
    ],
    numbers={
        "lr": -1e-3,
        "momentum": -0.1,
        "dampening": -0.1,
        "weight_decay": -0.1,
        "eps": -1e-8,
        "delta": -0.1,
        "wd_ratio": -0.1,
    },
    checkpoints=[
        Checkpoint("timm.optim.sgdp.SGDP", {}, {"lr": 1e-2, "momentum": 0.5, "weight_decay": 0.2, **_LIKELY}),
    ],
    small_steps={"lr": 1e-4, "momentum": 0.9, "weight_decay": 0.1},
)
