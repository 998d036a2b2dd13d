"""An optimizer and a peer, step by step on the same gradients, and how far apart they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cases import Options, Reference
from harness import Params, feed, flattened, parameters, set_lr, values
from torch import Tensor

STEPS = 50


@dataclass(frozen=True)
class Both:
    """What came of two optimizers.

    Args:
        ours, theirs: all parameters as one vector after each step.
        start: the parameters before the first.
        peers_params: the peer's parameters after the last.
    """

    ours: list[Tensor]
    theirs: list[Tensor]
    start: dict[str, Tensor]
    peers_params: dict[str, Tensor]

    def distance(self) -> float:
        """The largest difference after the last step, as a share of how far a parameter has come, over all of them."""
        sizes = [param.numel() for param in self.start.values()]
        ours, theirs, start = (row.split(sizes) for row in (self.ours[-1], self.theirs[-1], flattened(self.start)))
        shares = [
            float((mine - other).abs().amax() / (other - begin).abs().amax())
            for mine, other, begin in zip(ours, theirs, start, strict=True)
        ]
        return max(shares)


def side_by_side(
    cls: type[torch.optim.Optimizer], reference: Reference, ours: Options, theirs: Options, steps: int = STEPS
) -> Both:
    """Run our optimizer with `ours` and the peer with what `theirs` means to it, on the same gradients.

    Raises:
        peers.MissingPeer: its package is not installed.
    """
    mine = parameters(reference.layouts, reference.dtype)
    other = parameters(reference.layouts, reference.dtype)
    optimizer = cls(list(mine.items()), **ours)
    peer = reference.build(other, theirs)
    lrs = [o.get("lr", o.get("learning_rate")) if reference.lr_moves else None for o in (ours, theirs)]
    return stepped_together(optimizer, peer, mine, other, lrs, steps)


def stepped_together(
    optimizer: Any, peer: Any, mine: Params, other: Params, lrs: Sequence[float | None], steps: int
) -> Both:
    """Step two optimizers on the same gradients.

    Args:
        optimizer, mine: ours and its parameters.
        peer, other: the peer and its own.
        lrs: the learning rates of both, which change from step to step; None where an optimizer sets its own.
        steps: how many.
    """
    both = Both([], [], values(mine), other)
    for t in range(1, steps + 1):
        set_lr(optimizer, t, lrs[0])
        set_lr(peer, t, lrs[1])
        feed(mine, t, follow=other)
        feed(other, t)
        for param in other.values():
            param.grad = param.grad.contiguous()  # some peers write into it
        optimizer.step()
        peer.step()
        both.ours.append(flattened(mine))
        both.theirs.append(flattened(other))
    return both
