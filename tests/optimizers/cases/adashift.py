from __future__ import annotations

import torch

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid

_FUNCTIONS = {"max": torch.max, "mean": torch.mean, None: None}


def _po(options: Options) -> Options:
    return {**options, "reduce_func": _FUNCTIONS[options.get("reduce_func", "max")], "foreach": False}


ADASHIFT = Entry(
    "adashift",
    hfoptim.AdaShift,
    variants={
        "max": Variant({"keep_num": 2, "weight_decay": 0.1}, complex=False, compiled=True),
        "element": Variant({"keep_num": 2, "reduce_func": None}),
    },
    references=[
        Reference(
            "pytorch_optimizer.AdaShift",
            grid(lr=[1e-2], betas=[(0.9, 0.999), (0.5, 0.9)], keep_num=[2, 10], reduce_func=["max", None], eps=[1e-3])
            + grid(lr=[1e-2], keep_num=[1], reduce_func=["mean"]),
            _po,
        ),
    ],
    numbers={"lr": -1e-3, "keep_num": 0, "eps": -1e-8, "weight_decay": -0.1},
    small_steps={"lr": 1e-4, "keep_num": 1, "weight_decay": 0.1},
)
