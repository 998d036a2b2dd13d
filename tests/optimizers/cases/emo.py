from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import peers
import torch
from told import swinging_loss_of, told
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid, without
from cases.transcribed import Peer, transcription


def _one_divisor(averages: dict[str, float]) -> float:
    return math.tanh((averages["long"] - averages["short"]) / max(averages["long"], 1e-5))


def _emo(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's without its choice of a divisor, which is one of rounding."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            module: Any = import_module(Peer.__mro__[1].__module__)
            kept, loss = module.compute_scalar, swinging_loss_of(self.param_groups)
            module.compute_scalar = _one_divisor
            try:
                return super().step(lambda: loss)
            finally:
                module.compute_scalar = kept

    return Peer(list(params.values()), **options)


class _Swinging(Peer):
    """A transcription that is told the swinging loss."""

    loss_of = staticmethod(swinging_loss_of)


_SHADOWED = grid(lr=[1e-2], weight_decay=[0.0, 0.25], use_shadow=[True])
_RUNS = grid(lr=[1e-2], betas=[(0.9, 0.995), (0.5, 0.0)], weight_decay=[0.0, 0.25])
_OPTIONS = {"alone": False, "late": False}

EMONAVI = Entry(
    "emonavi",
    told(hfoptim.EmoNavi, swinging_loss_of),
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True, **_OPTIONS),
        "shadow": Variant({"weight_decay": 0.1, "use_shadow": True}, linear=False, **_OPTIONS),
    },
    references=[
        Reference(
            "pytorch_optimizer.EmoNavi",
            _RUNS + grid(lr=[1e-2], betas=[(0.9, 0.99)], eps=[1e-2]),
            without(foreach=False),
            make=_emo,
        ),
        transcription(hfoptim.EmoNavi, _SHADOWED, _Swinging),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)

EMOLYNX = Entry(
    "emolynx",
    told(hfoptim.EmoLynx, swinging_loss_of),
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, **_OPTIONS)},
    references=[
        Reference("pytorch_optimizer.EmoLynx", _RUNS, without(foreach=False), make=_emo),
        transcription(hfoptim.EmoLynx, _SHADOWED, _Swinging),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)

EMOFACT = Entry(
    "emofact",
    told(hfoptim.EmoFact, swinging_loss_of),
    variants={"decay": Variant({"weight_decay": 0.1}, lr=1e-3, **_OPTIONS)},
    references=[
        # Of vectors it takes the sign of a momentum, which without decay is that of the gradient.
        Reference(
            "pytorch_optimizer.EmoFact",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25]),
            without(foreach=False, betas=(0.0, 0.9)),
            make=_emo,
        ),
        transcription(hfoptim.EmoFact, _SHADOWED, _Swinging),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)
