from __future__ import annotations

from typing import Any

import peers
from torch import Tensor

import hfoptim
from cases.entry import BETAS, Entry, Options, Reference, Variant, grid, without


def _authors(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the author's decoupled decay, which begins at the second step."""
    peer = peers.load(who)(list(params.values()), **{**options, "weight_decay": 0.0})

    def begin(optimizer: Any, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = options["weight_decay"]

    peer.register_step_post_hook(begin)
    return peer


AVAGRAD = Entry(
    "avagrad",
    hfoptim.AvaGrad,
    variants={
        "l2": Variant({"weight_decay": 0.1}, alone=False, compiled=True),
        "decay": Variant({"weight_decay": 0.1, "weight_decouple": True}, alone=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.AvaGrad",
            grid(lr=[1e-2], betas=BETAS, weight_decay=[0.25]) + grid(lr=[1e-2], eps=[1e-3]),
            without(weight_decouple=False, foreach=False),
        ),
        Reference(
            "pytorch_optimizer.AvaGrad",
            grid(lr=[1e-2], weight_decay=[0.25], weight_decouple=[True]),
            without(foreach=False),
            make=_authors,
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
)
