from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hfoptim
from cases.entry import Checkpoint, Entry, Options, Reference, Variant, grid, without


class _AtOnce(torch.optim.ASGD):
    """torch's, where a learning rate counts from the step on before which it is set, and not one later."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for state in (self.state[param] for param in group["params"]):
                lr = group["lr"]
                state["eta"].fill_(lr / (1 + group["lambd"] * lr * float(state["step"])) ** group["alpha"])
        return super().step(closure)


def _at_once(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """With numbers in double precision, of which torch's own would be float32."""
    optimizer = _AtOnce(list(params.values()), **options)
    for param in params.values():
        numbers = {name: torch.tensor(first, dtype=param.dtype) for name, first in _FIRST.items()}
        optimizer.state[param] = {**numbers, "ax": torch.zeros_like(param)}
    return optimizer


_FIRST = {"step": 0.0, "eta": 0.0, "mu": 1.0}
_AVERAGES = {"lr": 1e-2, "t0": 3.0, "lambd": 0.1}

ASGD = Entry(
    "asgd",
    hfoptim.ASGD,
    variants={"averaging": Variant({"t0": 1.0, "weight_decay": 0.1}, linear=False, compiled=True)},
    references=[
        Reference(
            "torch.optim.ASGD",
            [
                *grid(lr=[1e-2], lambd=[1e-4, 0.1], alpha=[0.75, 0.5], weight_decay=[0.0, 0.25]),
                {**_AVERAGES, "maximize": True},
            ],
            without(foreach=False),
            make=_at_once,
        ),
        # As it is, where lr stays; its step size is float32.
        Reference("torch.optim.ASGD", [_AVERAGES], without(foreach=False), lr_moves=False, tolerance=1e-5),
    ],
    numbers={"lr": -1e-3, "lambd": -1e-4, "alpha": -0.1, "t0": -1.0, "weight_decay": -0.1},
    checkpoints=[Checkpoint("torch.optim.ASGD", {}, {**_AVERAGES, "weight_decay": 0.2, "alpha": 0.5}, tolerance=1e-5)],
)
