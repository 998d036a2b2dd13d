from __future__ import annotations

from typing import Any

import peers
import torch
from torch import Tensor

import hfoptim
from cases.entry import Entry, Options, Reference, Variant, grid


def _apollo(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's, with the author's warm-up: from 0."""
    warmup, lr = options.pop("warmup"), options["lr"]
    begin = options.pop("init_lr", lr / 1000)

    class Peer(peers.load(who)):  # type: ignore[misc]
        steps = 0

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            if self.steps < warmup:
                self.param_groups[0]["lr"] = begin + (lr - begin) * self.steps / warmup
            elif warmup:
                self.param_groups[0]["lr"] = lr
            self.steps += 1
            return super().step(closure)

    return Peer(list(params.values()), warmup_steps=0, **options)


_TYPES = [None, "L2", "decoupled", "stable"]


def _named(options: Options) -> Options:
    kind = options.get("weight_decay_type") or ("L2" if options.get("rebound") != "belief" else "decoupled")
    return {**options, "weight_decay_type": kind.lower()}


APOLLO = Entry(
    "apollo",
    hfoptim.Apollo,
    variants={
        "constant": Variant({"weight_decay": 0.1, "warmup": 0}, complex=False, compiled=True),
        "belief": Variant({"rebound": "belief", "warmup": 0, "weight_decay": 0.1}, complex=False),
        "stable": Variant({"weight_decay": 0.1, "weight_decay_type": "stable", "warmup": 0}, complex=False),
    },
    references=[
        Reference(
            "pytorch_optimizer.ApolloDQN",
            grid(lr=[1e-2], warmup=[0], weight_decay=[0.25], weight_decay_type=_TYPES, rebound=["constant", "belief"])
            + grid(lr=[1e-2], warmup=[0], beta=[0.0, 0.5], eps=[1e-2], rebound=["belief"]),
            _named,
            make=_apollo,
        ),
        Reference(
            "pytorch_optimizer.ApolloDQN",
            [{"lr": 1e-2, "warmup": 20}, {"lr": 1e-2, "warmup": 20, "init_lr": 5e-3}],
            _named,
            make=_apollo,
            lr_moves=False,
        ),
    ],
    numbers={"lr": -1e-3, "beta": 1.0, "eps": -1e-8, "warmup": -1, "init_lr": -1.0, "weight_decay": -0.1},
)
