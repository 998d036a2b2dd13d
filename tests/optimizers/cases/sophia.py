from __future__ import annotations

from dataclasses import replace
from typing import Any

import peers
import torch
import transcriptions
from torch import Tensor

import hfoptim
from cases.adahessian import curvature
from cases.entry import Entry, Options, Reference, Variant, grid
from cases.transcribed import Peer, transcription

# Every so many steps the estimate takes the gradients of the step.
_EVERY = 3


class Estimating(hfoptim.SophiaG):
    """SophiaG with an estimate every few steps, of the gradients of the step: harnesses make no others."""

    @torch.no_grad()
    def step(self, closure: Any = None, *, loss: Any = None) -> Any:
        found = super().step(closure, loss=loss)
        if self.param_groups[0]["since"] == _EVERY:
            self.update_hessian()
        return found


class EstimatingPeer(Peer):
    """The transcription with such estimates."""

    written: transcriptions.SophiaG

    def step(self) -> None:
        super().step()
        if self.written.t % _EVERY == 0:
            self.written.curvature(self.grads())


SOPHIA_G = Entry(
    "sophiag",
    Estimating,
    variants={"decay": Variant({"weight_decay": 0.1, "bs": 10}, lr=1e-3, late=False, alone=False, compiled=True)},
    references=[
        transcription(
            hfoptim.SophiaG,
            grid(lr=[1e-2], betas=[(0.965, 0.99), (0.5, 0.0)], weight_decay=[0.0, 0.25], bs=[2, 50]),
            EstimatingPeer,
        ),
    ],
    numbers={"lr": -1e-3, "rho": -0.1, "weight_decay": -0.1, "bs": 0, "update_period": 0},
    small_steps={"lr": 1e-3, "weight_decay": 0.1},
)


class Curved(hfoptim.SophiaH):
    """SophiaH with a Hessian that depends on the parameter alone; test_adahessian.py has the true one."""

    curvature = replace(hfoptim.SophiaH.curvature, estimate=lambda due, step: [curvature(param) for _, param, _ in due])


def _curved(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """pytorch_optimizer's with the same Hessian."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        def compute_hutchinson_hessian(self, **kwargs: Any) -> None:
            for group in self.param_groups:
                for param in group["params"]:
                    self.state[param]["hessian"] = curvature(param)

    return Peer(list(params.values()), **options)


SOPHIA_H = Entry(
    "sophiah",
    Curved,
    variants={
        "decay": Variant({"weight_decay": 0.1, "update_period": 3, "p": 0.5}, complex=False, compiled=True),
    },
    references=[
        Reference(
            "pytorch_optimizer.SophiaH",
            grid(lr=[1e-2], betas=[(0.96, 0.99), (0.5, 0.0)], weight_decay=[0.0, 0.25], p=[1.0], update_period=[10])
            + grid(lr=[1e-2], p=[0.1, 10.0], update_period=[1, 4], eps=[1e-2]),
            make=_curved,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "weight_decay": -0.1,
        "p": -0.1,
        "update_period": 0,
        "n_samples": 0,
        "eps": -1e-8,
    },
    small_steps={"lr": 1e-3, "weight_decay": 0.1},
)
