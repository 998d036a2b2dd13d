"""The diagonal of the Hessian from products with random vectors (Hutchinson's estimator), for `Curvature`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hfoptim.engine import Due, Group, aligned, divided, is_dtensor
from hfoptim.engine.storage import exact_dtype

SEED = 2147483647


def rademacher(param: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor like the parameter, each entry 1 or -1."""
    return torch.empty_like(param, requires_grad=False).bernoulli_(generator=generator).mul_(2.0).sub_(1.0)


def gaussian(param: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor like the parameter, each entry of the standard normal distribution."""
    return torch.empty_like(param, requires_grad=False).normal_(generator=generator)


def _drawn(group: Group, param: Tensor, generator: torch.Generator) -> Tensor:
    draw = gaussian if group.get("hessian_distribution") == "gaussian" else rademacher
    if not is_dtensor(param):
        return draw(param, generator)
    # That of the whole parameter, so that it does not depend on the number of ranks.
    whole = torch.empty(param.shape, dtype=param.dtype, device=param.device)
    return divided(draw(whole, generator), param)


def diagonals(due: Sequence[Due], step: int) -> list[Tensor]:
    """The mean of `z * (H z)` over random z, which is the Hessian's diagonal on average.

    Args:
        due: parameters, with the options `n_samples` (or 1) and `hessian_distribution` (or "rademacher") in their
            groups.
        step: the number of steps taken, which decides the random vectors.

    Raises:
        RuntimeError: no gradient has a graph.
    """
    grads = [grad for _, _, grad in due if grad.requires_grad]
    if not grads:
        raise RuntimeError(
            "the Hessian is estimated from the graph of the gradients, and none of them has a graph; call "
            "loss.backward(create_graph=True)"
        )
    params = [param for _, param, _ in due]
    devices = list(dict.fromkeys(param.device for param in params))
    # One seed for each device: equal draws on two of them would be correlated.
    generators = {d: torch.Generator(d).manual_seed(SEED + step * len(devices) + i) for i, d in enumerate(devices)}
    found = [torch.zeros_like(param, dtype=exact_dtype(param.dtype)) for param in params]
    counts = [group.get("n_samples", 1) for group, _, _ in due]
    for sample in range(max(counts)):
        vectors = [_drawn(group, param, generators[param.device]) for group, param, _ in due]
        products = torch.autograd.grad(
            grads,
            params,
            [vector for vector, (_, _, grad) in zip(vectors, due, strict=True) if grad.requires_grad],
            retain_graph=sample < max(counts) - 1,
            allow_unused=True,
        )
        for count, diagonal, product, vector in zip(counts, found, products, vectors, strict=True):
            if product is not None and sample < count:
                diagonal.add_(aligned(product, diagonal) * vector, alpha=1.0 / count)
    return found
