"""Peers with a named difference of theirs repaired: for `Reference.make`."""

from __future__ import annotations

from functools import partial
from typing import Any

import peers
from torch import Tensor

from cases.entry import Options


def without_root_eps(who: str, params: dict[str, Tensor], options: Options) -> Any:
    """A class of pytorch_optimizer without the 1e-15 that it adds to second moments before it takes their root."""
    peer = peers.load(who)(list(params.values()), **{**options, "foreach": False})
    peer.apply_ams_bound = partial(type(peer).apply_ams_bound, exp_avg_sq_eps=0.0)
    return peer
