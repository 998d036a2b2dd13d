from __future__ import annotations

import math
from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid

_BETAS = [(0.9, 0.999, 0.9999), (0.5, 0.0, 0.9), (0.0, 0.9, 0.99)]


def _po(options: Options) -> Options:
    return {**options, "weight_decouple": True, "foreach": False}


def _authors(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the authors' schedule of beta3: the time in which an average halves grows linearly."""
    peer = peers.load(who)(list(params.values()), **options)

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta + 1e-8) - 1.0

    def schedule(warmup: float | None, step: int, beta1: float, beta3: float) -> float:
        if warmup is None or step >= warmup:
            return beta3
        steps = (1.0 - step / warmup) * half_life(beta1) + step / warmup * half_life(beta3)
        return math.pow(0.5, 1.0 / (steps + 1.0))

    peer.schedule_beta3 = schedule
    return peer


ADEMAMIX = Entry(
    "ademamix",
    hfoptim.AdEMAMix,
    variants={
        "decay": Variant({"weight_decay": 0.1}),
        "warmup": Variant({"t_alpha_beta3": 6, "weight_decay": 0.1}, compiled=True),
    },
    references=[
        Reference(
            "pytorch_optimizer.AdEMAMix",
            grid(lr=[1e-2], betas=_BETAS, weight_decay=[0.0, 0.25])
            + grid(lr=[1e-2], alpha=[2.0], eps=[1e-2], weight_decay=[0.25]),
            _po,
        ),
        Reference(
            "pytorch_optimizer.AdEMAMix",
            grid(lr=[1e-2], betas=_BETAS, t_alpha_beta3=[1, 30, 200.0], weight_decay=[0.25]),
            _po,
            make=_authors,
        ),
        # Without what the authors add inside the logarithm.
        Reference(
            "pytorch_optimizer.AdEMAMix", grid(lr=[1e-2], t_alpha_beta3=[30], weight_decay=[0.25]), _po, tolerance=1e-5
        ),
    ],
    numbers={"lr": -1e-3, "alpha": -5.0, "t_alpha_beta3": -1, "eps": -1e-8, "weight_decay": -0.1},
)
