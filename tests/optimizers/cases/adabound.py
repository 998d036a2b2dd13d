from __future__ import annotations

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid, without
from cases.repaired import without_root_eps


def _po(options: Options) -> Options:
    """The options by their names and with the defaults of pytorch_optimizer."""
    given = {"weight_decouple": False, **without("amsbound")(options)}
    return {**given, "ams_bound": options.get("amsbound", False)}


ADABOUND = Entry(
    "adabound",
    hfoptim.AdaBound,
    variants={
        "l2": Variant({"weight_decay": 0.1, "gamma": 0.1}, compiled=True),
        "amsbound": Variant({"amsbound": True, "weight_decay": 0.1, "weight_decouple": True}),
        "fixed": Variant({"weight_decay": 1e-3, "weight_decouple": True, "fixed_decay": True}),
    },
    references=[
        Reference(
            "pytorch_optimizer.AdaBound",
            grid(lr=[1e-2], betas=BETAS, gamma=[0.5], weight_decay=[0.25])
            + grid(lr=[1e-2], amsbound=[True], weight_decay=[0.02], weight_decouple=[True], fixed_decay=[False, True])
            + grid(lr=[1e-2], final_lr=[1.0], gamma=[1e-3], eps=[1e-2]),
            _po,
            make=without_root_eps,
        ),
    ],
    numbers={"lr": -1e-3, "final_lr": -0.1, "gamma": 1.5, "eps": -1e-8, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "final_lr": 1e-4, "weight_decay": 0.1},
)
