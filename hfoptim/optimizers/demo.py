"""DeMo: signs of the momentum's fast components, which then leave the momentum."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hfoptim.engine import MATRIX, Group, Name, Rule, RuleOptimizer, Scalars, hyper, zeros


def _per_step(t: int, group: Group) -> Scalars:
    return {"rate": float(group["lr"]), "keep": group["compression_decay"]}


def _chunk(size: int, most: int) -> int:
    """The largest divisor of a dimension that is no larger than `most`."""
    return max((each for each in range(1, min(size, most) + 1) if size % each == 0), default=1)


def _cosines(x: Tensor, size: int) -> Tensor:
    """The basis of the discrete cosine transform (type II), a column for each frequency; orthogonal."""
    n = torch.arange(size, device=x.device)
    twice = (2 * n.unsqueeze(1) + 1) * n % (4 * size)  # the angle, in parts of pi / (2 size)
    basis = (twice.to(x.dtype) * (math.pi / (2 * size))).cos() * math.sqrt(2.0 / size)
    # Exact zeros, of which rounding would make signs.
    basis = basis * (twice % (2 * size) != size)
    return torch.where(n > 0, basis, math.sqrt(1.0 / size))


@cache
def demo(chunks: tuple[int, ...], top_k: int, shape: Any) -> Rule:
    """The rule for parameters that are cut alike.

    Args:
        chunks: how many entries a chunk has along each dimension.
        top_k: how many components of a chunk are taken.
        shape: as the rule's.
    """
    count, size = len(chunks), math.prod(chunks)

    def turned(x: Tensor, bases: list[Tensor], back: bool) -> Tensor:
        """Chunks, whose dimensions are the last ones, along all of which the transform or its inverse is taken."""
        for basis in bases:
            x = x.movedim(-count, -1) @ (basis.mT if back else basis)
        return x

    def fn(grad: Tensor, param: Tensor, delta: Tensor, h: Any) -> tuple[Tensor, Tensor]:
        delta = delta * h.keep + grad * h.rate
        bases = [_cosines(delta, chunk) for chunk in chunks]
        batch = delta.ndim - count
        split = delta.reshape(
            *delta.shape[:batch],
            *(n for whole, chunk in zip(delta.shape[batch:], chunks, strict=True) for n in (whole // chunk, chunk)),
        )
        order = [*range(batch), *range(batch, batch + 2 * count, 2), *range(batch + 1, batch + 2 * count, 2)]
        cut = split.permute(order)
        found = turned(cut, bases, back=False)
        flat = found.reshape(*found.shape[:-count], size)
        largest = flat.abs().topk(min(top_k, size), sorted=False).indices
        kept = torch.zeros_like(flat).scatter(-1, largest, flat.gather(-1, largest)).view_as(found)
        sent = turned(kept, bases, back=True).permute([order.index(i) for i in range(len(order))]).reshape(delta.shape)
        return sent.sign(), delta - sent

    fn.__name__ = "demo"
    return Rule(fn, MATRIX, {"delta": zeros}, _per_step, shape=shape, dims=count)


def _seen(shape: torch.Size) -> tuple[int, ...]:
    """As what the chunks see a parameter: a vector or a matrix."""
    return (math.prod(shape),) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


class DeMo(RuleOptimizer):
    """Signs of the largest components of the momentum, taken in chunks after a cosine transform, which then leave it.

    With G the gradient, P the parameter, cut into chunks of a vector or a matrix:

        D = compression_decay D + lr G
        F = DCT(D), chunk by chunk
        Q = the inverse DCT of the compression_topk entries of F that are largest in absolute value, of each chunk
        D = D - Q
        P = P - lr weight_decay P - lr sign(Q)

    What is not taken stays in D and grows until it is. A chunk has `compression_chunk` entries along each side, or the
    largest divisor of the side below that; a side whose length is prime has chunks of 1. Kernels of convolutions are
    matrices with a row for each output. An entry for which nothing was taken does not move; in
    the authors' class it does, by the sign of what rounding leaves.

    The authors' class also exchanges the gradients: each of several processes has a momentum of its own gradients, they
    exchange the taken entries of F alone, and Q is that of their mean. Here the gradients are averaged before, as
    DistributedDataParallel and FSDP do, and every process takes the same step: the update is that of one process with
    the whole batch, and nothing is saved on the network.

    State: `delta` (D).

    Raises:
        TypeError: a complex parameter.

    Source:
        Peng, Quesnelle and Kingma, DeMo: Decoupled Momentum Optimization, arXiv 2411.19870; bloc97/DeMo, which knows
        vectors and matrices.
    """

    names = (Name("demo"),)
    lr: float = hyper(1e-3, "learning rate")
    compression_decay: float = hyper(0.999, "decay rate of D", below=1.0)
    compression_topk: int = hyper(32, "components of a chunk that are taken", low=1)
    compression_chunk: int = hyper(64, "most entries of a chunk along one side", low=1)
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        seen = _seen(param.shape)
        chunks = tuple(_chunk(size, group["compression_chunk"]) for size in seen)
        return demo(chunks, group["compression_topk"], None if seen == param.shape else _seen)
