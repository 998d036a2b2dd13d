"""Peers with a named difference of theirs repaired: for `Reference.make`."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import peers
import torch
from torch import Tensor

from cases.entry import Options


def without_root_eps(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """A class of pytorch_optimizer without the 1e-15 that it adds to second moments before it takes their root."""
    peer = peers.load(who)(list(params.values()), **{**options, "foreach": False})
    peer.apply_ams_bound = partial(type(peer).apply_ams_bound, exp_avg_sq_eps=0.0)
    return peer


def norm_in_double(who: str) -> type[Any]:
    """A class of pytorch_optimizer that takes the norm of all gradients in double precision, there float32."""

    class Peer(peers.load(who)):  # type: ignore[misc]
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            module: Any = import_module(Peer.__mro__[1].__module__)
            kept = module.get_global_gradient_norm
            module.get_global_gradient_norm = lambda groups: sum(
                param.grad.square().sum() for group in groups for param in group["params"]
            )
            try:
                return super().step(closure)
            finally:
                module.get_global_gradient_norm = kept

    return Peer
