"""Peers that are transcriptions in NumPy (tests/transcriptions), which step beside an optimizer as any other peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import peers
import torch
from told import loss_of
from torch import Tensor
from transcriptions import Array, Transcription

from cases.entry import Options, Reference
from hfoptim.engine import RuleOptimizer


class Peer:
    """Parameters that a transcription moves.

    Args:
        written: its class.
        params: by name, in double precision.
        options: of the optimizer that follows it, all of them, and `maximize`.
    """

    # Gives the loss that the transcription is told.
    loss_of = staticmethod(loss_of)

    def __init__(self, written: type[Transcription], params: dict[str, Tensor], options: Options) -> None:
        self.params, lr = params, options.pop("lr")
        self.param_groups: list[Options] = [{"params": list(params.values()), "lr": lr}]
        self.sign = -1.0 if options.pop("maximize", False) else 1.0
        if "max_lr" in options and options["max_lr"] is None:
            options["max_lr"] = lr
        self.written = written({name: param.detach().numpy() for name, param in params.items()}, **options)

    def grads(self) -> dict[str, Array]:
        return {name: self.sign * param.grad.numpy() for name, param in self.params.items() if param.grad is not None}

    @torch.no_grad()
    def step(self) -> None:
        self.written.step(self.grads(), self.param_groups[0]["lr"], float(self.loss_of(self.param_groups)))
        for name, param in self.params.items():
            param.copy_(torch.from_numpy(np.asarray(self.written.params[name])))


def transcription(
    cls: type[RuleOptimizer], runs: list[Options], peer: Callable[..., Any] = Peer, **more: Any
) -> Reference:
    """The transcription of a class's name as a reference.

    Args:
        cls: our class, whose defaults hold where a run gives no option.
        runs: our options, one run each.
        peer: makes the peer.
        more: of `Reference`.
    """

    def make(who: str, params: dict[str, Tensor], options: Options) -> Any:
        return peer(peers.load(who), params, {name: each.default for name, each in cls.hypers.items()} | options)

    return Reference(f"transcriptions.{cls.__name__}", runs, make=make, **more)
