from __future__ import annotations

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid, without
from cases.transcribed import transcription


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


MIRROR_MADGRAD = Entry(
    "mirror_madgrad",
    hfoptim.MirrorMADGRAD,
    variants={
        "decay": Variant({"weight_decay": 0.1, "decouple_decay": True}, linear=False, compiled=True),
        "l2": Variant({"weight_decay": 0.1}, linear=False),
    },
    references=[
        transcription(
            hfoptim.MirrorMADGRAD,
            grid(lr=[1e-2], weight_decay=[0.25], decouple_decay=[False, True])
            + grid(lr=[1e-2], momentum=[0.0, 0.5], eps=[0.0, 1e-3]),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "eps": -1e-8, "weight_decay": -0.1},
)
