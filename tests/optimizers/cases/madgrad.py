from __future__ import annotations

from typing import Any

from torch import Tensor

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid, without
from cases.transcribed import Transcribed


def _po(options: Options) -> Options:
    return without("decoupled_decay", foreach=False)(options)


_MADGRAD = grid(lr=[1e-2], momentum=[0.9, 0.0], weight_decay=[0.25], decoupled_decay=[False, True]) + grid(
    lr=[1e-2], eps=[1e-2], momentum=[0.5]
)

MADGRAD = Entry(
    "madgrad",
    hfoptim.MADGRAD,
    variants={
        "decay": Variant({"weight_decay": 0.1, "decoupled_decay": True}, linear=False, compiled=True),
        "plain": Variant({"weight_decay": 0.1, "momentum": 0.0}, linear=False),
    },
    references=[
        Reference("timm.optim.madgrad.MADGRAD", _MADGRAD),
        Reference("pytorch_optimizer.MADGRAD", [o for o in _MADGRAD if not o.get("decoupled_decay")], _po),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint("timm.optim.madgrad.MADGRAD", {}, {"lr": 1e-2, "momentum": 0.8, "eps": 1e-4, "weight_decay": 0.2}),
        Checkpoint("timm.optim.madgrad.MADGRAD", {}, {"lr": 1e-2, "momentum": 0.0, "decoupled_decay": True}),
    ],
)


class AuthorsMirror(Transcribed):
    """facebookresearch/madgrad, mirror_madgrad.py."""

    defaults_ = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.0, "eps": 0.0, "decouple_decay": False}

    def move(self, p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
        k, lr = s["t"] - 1, o["lr"] + o["eps"]
        if k == 0:
            s |= {"nu": g * 0.0, "z": p.clone()}
        if o["decouple_decay"]:
            s["z"] = s["z"] - lr * o["weight_decay"] * s["z"]
        else:
            g = g + o["weight_decay"] * p
        s["nu"] = (k / (k + 1)) ** 0.5 * s["nu"] + g**2
        root = s["nu"] ** (1 / 3) + o["eps"]
        root[root == 0] = float("inf")
        s["z"] = s["z"] - lr * (k + 1) ** (1 / 3) * g / root
        return o["momentum"] * p + (1 - o["momentum"]) * s["z"]


MIRROR_MADGRAD = Entry(
    "mirror_madgrad",
    hfoptim.MirrorMADGRAD,
    variants={
        "decay": Variant({"weight_decay": 0.1, "decouple_decay": True}, compiled=True),
        "l2": Variant({"weight_decay": 0.1}),
    },
    references=[
        Reference(
            "cases.madgrad.AuthorsMirror",
            grid(lr=[1e-2], weight_decay=[0.25], decouple_decay=[False, True])
            + grid(lr=[1e-2], momentum=[0.0, 0.5], eps=[0.0, 1e-3]),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
